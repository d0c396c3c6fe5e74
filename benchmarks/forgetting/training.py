"""Training: hotfix or a rival on a subject, and the model changed for as long as a block lasts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from benchmarks.forgetting import compute
from benchmarks.forgetting.settings import ABLATION, HOTFIX, PARTS, RIVALS, Setting, ablations, settings
from benchmarks.forgetting.subject import Sizes, Subject
from benchmarks.forgetting.units import Unit
from benchmarks.rivals.ways import opened
from hotfix.building import build
from hotfix.case import Case
from hotfix.recipe import Recipe
from hotfix.stack import Stack

OTHERS = 32  # captions of other pictures that a rival is trained under


@dataclass(frozen=True)
class Training:
    """What a method spent, and what it would ship: LoRA factors, or all weights, in float32."""

    steps: int
    seconds: float
    peak_bytes: int
    shipped_bytes: int
    forward: int
    backward: int
    cost: int
    budget: int | None


@contextmanager
def changed(unit: Unit, subject: Subject, sizes: Sizes, budget: int | None) -> Iterator[Training]:
    """Train, and keep the model changed inside the block.

    Raises:
        HotfixError: hotfix refuses the recipe.
    """
    torch.manual_seed(unit.seed)
    if unit.method in (HOTFIX, ABLATION):
        with _hotfix(unit, subject) as training:
            yield training
    else:
        with _rival(unit, subject, sizes, budget) as training:
            yield training


@contextmanager
def _hotfix(unit: Unit, subject: Subject) -> Iterator[Training]:
    denoiser, recipe = subject.model.denoiser, subject.recipe
    loop = nullcontext()
    if unit.setting in PARTS:
        name, instead = PARTS[unit.setting]
        loop = mock.patch(name, instead)
    elif unit.method == ABLATION:
        recipe = with_changes(recipe, ablations(subject.target)[unit.setting])
    steps = 0

    def progress(step: int, most: int, facts: Mapping[str, float]) -> None:
        nonlocal steps
        steps = step

    with loop, compute.metered(denoiser.device) as meter, compute.counted(denoiser.model) as count:
        patch = build(recipe, denoiser.pipe, progress=progress)
    shipped = sum(entry.data.nbytes for entry in patch.entries.values())
    with Stack.of(patch).on(denoiser.pipe):
        yield Training(steps, meter.seconds, meter.peak_bytes, shipped, count.forward, count.backward, count.cost, None)


def with_changes(recipe: Recipe, changes: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The same recipe with some keys changed, checked again."""
    sections = {name: getattr(recipe, name).model_copy(update=dict(keys)) for name, keys in changes.items()}
    copied = recipe.model_copy(update=sections)
    return Recipe.parse(copied.model_dump(), folder=recipe.place(""), name=recipe.name)


@contextmanager
def _rival(unit: Unit, subject: Subject, sizes: Sizes, budget: int | None) -> Iterator[Training]:
    denoiser, case = subject.model.denoiser, subject.case
    setting = settings(unit.method)[unit.setting]
    steps = setting.steps
    if steps is None:
        assert budget is not None, f"{unit.id} has no budget"
        steps = compute.steps_within(budget, unit.method, setting.rows, denoiser.captioned)
    steps = min(steps, sizes.steps or steps)
    one = case.targets[0]
    with opened(
        denoiser,
        setting.mode,
        x_f=one.x_f,
        x_s=one.x_s,
        x_r=case.x_r,
        forget=asked(case, unit.method, setting),
        retain=case.retain_captions,
        seed=unit.seed,
        rank=setting.rank,
    ) as problem:
        with compute.metered(denoiser.device) as meter:
            RIVALS[unit.method].train(problem, steps=steps, lr=setting.lr, rows=setting.rows, **setting.knob)
        shipped = 4 * sum(p.numel() for p in problem.parameters)
        count = problem.count
        yield Training(
            steps, meter.seconds, meter.peak_bytes, shipped, count.forward, count.backward, count.cost, budget
        )


SPARED = ("esd", "plain", "retrack", "selective_amnesia")  # see settings.py


def asked(case: Case, method: str, setting: Setting) -> list[str]:
    """The captions that a rival's forget rows are under: the target's own as published, else the kinds hotfix has."""
    if setting.published:
        return list(case.captions)
    kinds = case.caption_kinds()
    if method in SPARED:
        kinds.pop("random", None)
    apart = {kind: captions[:: max(1, len(captions) // OTHERS)] for kind, captions in kinds.items()}
    return [captions[i % len(captions)] for captions in apart.values() for i in range(OTHERS)]
