"""Bench: which units a process runs, in which order, and the base that is loaded for them."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.forgetting import work
from benchmarks.forgetting.drawings import Drawn, drawn
from benchmarks.forgetting.settings import HOTFIX
from benchmarks.forgetting.subject import Model, Sizes, Subject
from benchmarks.forgetting.targets import Base, Target
from benchmarks.forgetting.units import Unit
from hotfix import console
from hotfix.errors import HotfixError


def chosen(units: Sequence[Unit], only: Sequence[str], shard: tuple[int, int]) -> list[Unit]:
    """The units of this process, one subject after the other, hotfix first. Every unit is in exactly one shard."""
    wanted = dict.fromkeys(u for u in units if not only or any(fnmatch(u.id, pattern) for pattern in only))
    ordered = sorted(wanted, key=lambda u: (u.base, u.seed, u.target, u.method != HOTFIX))
    i, n = shard
    return ordered[i - 1 :: n]


class Bench:
    """One run: where files go, how much is drawn, and the base that is loaded."""

    def __init__(self, out: Path, sizes: Sizes, device: str, golds: Mapping[str, str]) -> None:
        self.out, self.sizes, self.device = out, sizes, device
        self.golds = golds  # base/target -> folder
        self.model: Model | None = None

    def do(self, base: Base, target: Target, seed: int, units: Sequence[Unit]) -> None:
        """Run the units of one subject that have no file yet."""
        left = [unit for unit in units if work.load(self.out, unit, self.sizes) is None]
        if not left:
            return
        if self.model is None or self.model.base != base:
            self.model = Model.load(base, self.device)
        with tempfile.TemporaryDirectory() as folder:
            try:
                subject = Subject.of(self.model, target, seed, self.sizes, Path(folder))
            except HotfixError as error:
                for unit in left:
                    self._fail(unit, str(error))
                return
            before, gold = drawn(subject, self.sizes, self.model.remembered), self._gold(base, subject)
            for unit in left:
                first = unit.waits_for
                if first is not None and work.load(self.out, first, self.sizes) is None:
                    self._one(first, subject, before, gold)
                self._one(unit, subject, before, gold)

    def _fail(self, unit: Unit, why: str) -> None:
        work.save(self.out, unit, work.about(unit, self.sizes) | {"failed": why})

    def _one(self, unit: Unit, subject: Subject, before: Drawn, gold: Drawn | None) -> None:
        console.say(unit.id)
        budget = work.budget_for(unit, self.out, self.sizes)
        if unit.waits_for is not None and budget is None:
            return self._fail(unit, "hotfix was not built, so there is no budget")
        content = work.run(unit, subject, before, self.sizes, budget=budget, gold=gold)
        return work.save(self.out, unit, content)

    def _gold(self, base: Base, subject: Subject) -> Drawn | None:
        folder = self.golds.get(f"{base.name}/{subject.target.name}")
        if folder is None:
            return None
        model = Model.load(replace(base, pipeline=folder), self.device)
        return drawn(replace(subject, model=model), self.sizes, model.denoiser.draw)
