"""Work: run one unit, and keep its numbers in one file. One function measures whatever a method made of the model."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.forgetting.drawings import Drawn, drawn
from benchmarks.forgetting.measure import measured
from benchmarks.forgetting.subject import Sizes, Subject
from benchmarks.forgetting.training import changed
from benchmarks.forgetting.units import Unit
from hotfix.container import write_atomically
from hotfix.errors import HotfixError


def run(
    unit: Unit,
    subject: Subject,
    before: Drawn,
    sizes: Sizes,
    *,
    budget: int | None = None,
    gold: Drawn | None = None,
) -> dict[str, Any]:
    """Everything that its file holds: what was run, and either the numbers or the sentence that says why not."""
    try:
        with changed(unit, subject, sizes, budget) as training:
            after = drawn(subject, sizes, subject.model.denoiser.draw)
    except HotfixError as error:
        return about(unit, sizes) | {"failed": str(error)}
    return about(unit, sizes) | {"numbers": asdict(training) | measured(subject, before, after, gold)}


def about(unit: Unit, sizes: Sizes) -> dict[str, Any]:
    """What was run, how much was drawn, and on what."""
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return {"unit": asdict(unit), "sizes": asdict(sizes)} | machine


def save(folder: Path, unit: Unit, content: Mapping[str, Any]) -> None:
    """Write a unit's file, whole or not at all."""
    write_atomically(folder / f"{unit.id}.json", json.dumps(content, indent=1).encode() + b"\n")


def load(folder: Path, unit: Unit, sizes: Sizes) -> dict[str, Any] | None:
    """What a unit's file holds; None where there is none yet.

    Raises:
        HotfixError: it was measured with other sizes.
    """
    path = folder / f"{unit.id}.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    if content["sizes"] != asdict(sizes):
        was = ", ".join(f"{key} {value}" for key, value in content["sizes"].items())
        raise HotfixError(f"{unit.id} was measured with {was}", wanted=str(sizes), hint="name another folder: -o")
    return content


def budget_for(unit: Unit, folder: Path, sizes: Sizes) -> int | None:
    """The cost of the build that a unit's compute is measured by; None where it has none or there was no build."""
    first = unit.waits_for
    content = load(folder, first, sizes) if first is not None else None
    return content["numbers"]["cost"] if content is not None and "numbers" in content else None
