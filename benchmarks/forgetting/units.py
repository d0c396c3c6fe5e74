"""Units: one method with one setting on one target with one seed is one piece of work, and one file."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.forgetting.settings import ABLATION, DEFAULT, HOTFIX, PUBLISHED, RIVALS, changes, middle, settings
from benchmarks.forgetting.targets import Target


@dataclass(frozen=True)
class Unit:
    """One piece of work, and one file."""

    base: str
    target: str
    seed: int
    method: str
    setting: str

    @property
    def id(self) -> str:
        """What --only matches, and the file's path without its ending."""
        return f"{self.base}/{self.target}/{self.method}/{self.setting}/{self.seed}"

    @property
    def waits_for(self) -> "Unit | None":
        """The build whose cost is this unit's budget."""
        if self.method in (HOTFIX, ABLATION) or self.setting == PUBLISHED:
            return None
        return Unit(self.base, self.target, self.seed, HOTFIX, DEFAULT)


def units(targets: Iterable[Target], seeds: int, sweep_all: bool = False) -> Iterator[Unit]:
    """Hotfix and the published settings everywhere; the sweeps on the targets that are there to tune on, seed 0."""
    for target in targets:
        for seed in range(seeds):
            yield Unit(target.base, target.name, seed, HOTFIX, DEFAULT)
            for method in RIVALS:
                for setting in settings(method):
                    if setting == PUBLISHED or sweep_all or (target.tune and seed == 0):
                        yield Unit(target.base, target.name, seed, method, setting)


def best_units(targets: Iterable[Target], seeds: int, best: Mapping[tuple[str, str], str]) -> Iterator[Unit]:
    """The best setting of every method on a base (base, method -> label), on all of that base's targets."""
    for target in targets:
        for seed in range(seeds):
            for (base, method), setting in best.items():
                if base == target.base and method in RIVALS:
                    yield Unit(base, target.name, seed, method, setting)


def ablation_units(targets: Iterable[Target], seeds: int) -> Iterator[Unit]:
    """Hotfix, and hotfix with one thing changed."""
    for target in targets:
        for seed in range(seeds):
            yield Unit(target.base, target.name, seed, HOTFIX, DEFAULT)
            for change in changes(target):
                yield Unit(target.base, target.name, seed, ABLATION, change)


def quick_units() -> Iterator[Unit]:
    """Every method once, on the memorised emoji."""
    for method in (HOTFIX, *RIVALS):
        setting = DEFAULT if method == HOTFIX else middle(method)
        yield Unit("emoji", "jack-o-lantern", 0, method, setting)
