"""Best: the files of all units, and which setting of a method stands for it on a base.

Best means matched forgetting: of the settings that suppress as large a share of targets as hotfix does (on the subjects
that all settings of the method were run on), the one with the least drift; where none does, the one that suppresses
most, and of several the one that forgets most.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.forgetting.settings import HOTFIX, RIVALS

Key = tuple[str, str, int]  # base, target, seed: one subject


@dataclass(frozen=True)
class Row:
    """One unit that was measured."""

    base: str
    target: str
    seed: int
    method: str
    setting: str
    numbers: Mapping[str, Any]

    @property
    def key(self) -> Key:
        return self.base, self.target, self.seed


def read(folder: Path) -> list[Row]:
    """All units of a folder that have numbers, sorted."""
    rows = []
    for path in sorted(folder.glob("*/*/*/*/*.json")):
        content = json.loads(path.read_text())
        if "numbers" in content:
            rows.append(Row(**content["unit"], numbers=content["numbers"]))
    return rows


def failures(folder: Path) -> list[str]:
    """Units that were refused, with the sentence that says why."""
    contents = [(path, json.loads(path.read_text())) for path in sorted(folder.glob("*/*/*/*/*.json"))]
    return [f"{path.relative_to(folder).with_suffix('')}: {c['failed']}" for path, c in contents if "failed" in c]


def best_settings(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """(base, method) -> the label of its best setting there."""
    rows = list(rows)
    hotfix = {row.key: bool(row.numbers["suppressed"]) for row in rows if row.method == HOTFIX}
    grouped: dict[tuple[str, str], dict[str, dict[Key, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row.method in RIVALS:
            grouped[row.base, row.method][row.setting][row.key] = row
    return {where: _best(grouped[where], hotfix) for where in sorted(grouped)}


def _best(settings: Mapping[str, Mapping[Key, Row]], hotfix: Mapping[Key, bool]) -> str:
    common = set.intersection(*(set(found) for found in settings.values()))
    level = mean([hotfix.get(key, True) for key in common] or [1.0])

    def rank(label: str) -> tuple[Any, ...]:
        rows = [settings[label][key] for key in sorted(common or settings[label])]
        share = mean(bool(row.numbers["suppressed"]) for row in rows)
        drift = mean(_number(row, "drift") for row in rows)
        returned = mean(row.numbers["returns"] / row.numbers["replayed"] for row in rows)
        if share >= max(level, 1e-9):
            return 0, drift, label
        return 1, -share, returned, mean(row.numbers["over"] for row in rows), drift, label

    return min(settings, key=rank)


def _number(row: Row, name: str) -> float:
    value = row.numbers.get(name)
    return float("inf") if value is None else float(value)
