"""Table: unit files in, Markdown out, the same bytes for the same files.

A row is one method on one base at its best setting there (`best.py`), "all" every base with that base's best setting.
Hotfix has one setting everywhere, "base" is the untouched model, and "gold" one that was trained without the target
(only where there is one).

`below strangers` is the share that is `strictly` suppressed, `q95 − without it` is `over`, `q95 − stranger` `excess`.
Means are over targets, each the mean of its seeds; ± is half a 95% t-interval over targets. `suppressed` counts
subjects, with the Clopper–Pearson interval. `drift − hotfix's` is over the subjects that both suppress.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.forgetting.best import Key, Row, best_settings
from benchmarks.forgetting.measure import CHANGES, SCORES
from benchmarks.forgetting.settings import ABLATION, DEFAULT, HOTFIX, RIVALS
from hotfix.intervals import Rate

ALL, BASE, GOLD = "all", "base", "gold"


def methods(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """What the main table shows: the untouched base, gold, hotfix, and every rival at its best setting on each base."""
    best = best_settings(rows)
    hotfix = [row for row in rows if row.method == HOTFIX]
    found = {BASE: [untouched(row) for row in hotfix], GOLD: [retrained(r) for r in hotfix if "gold" in r.numbers]}
    found[HOTFIX] = hotfix
    for method in RIVALS:
        found[method] = [
            row for row in rows if best.get((row.base, row.method)) == row.setting and row.method == method
        ]
    return {name: picked for name, picked in found.items() if picked}


def changes(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """What the ablation table shows: hotfix, and every single change of it on the subjects it was tried on."""
    labels = sorted({row.setting for row in rows if row.method == ABLATION})
    tried = {row.key for row in rows if row.method == ABLATION}
    found = {HOTFIX: [row for row in rows if row.method == HOTFIX and row.key in tried]}
    return found | {label: [r for r in rows if r.method == ABLATION and r.setting == label] for label in labels}


def untouched(row: Row) -> Row:
    """The base as it is, from what a unit measured before it changed anything."""
    numbers = {name: row.numbers.get(f"base_{name}") for name in (*SCORES, "gold")} | {
        "replayed": row.numbers["replayed"]
    }
    return Row(row.base, row.target, row.seed, BASE, DEFAULT, numbers | dict.fromkeys(CHANGES, 0.0))


def retrained(row: Row) -> Row:
    """The model that never saw the target, measured like any change of the base."""
    numbers = {name: row.numbers[f"gold_{name}"] for name in (*SCORES, *CHANGES)} | {
        "replayed": row.numbers["replayed"]
    }
    return Row(row.base, row.target, row.seed, GOLD, DEFAULT, numbers | {"gold": 0.0})


def interval(values: Iterable[tuple[tuple[str, str], float]]) -> tuple[float, float | None]:
    """Mean over targets, each the mean of its seeds, and half its 95% interval; None for a single target.

    Args:
        values: (base, target) and a number, in any order.
    """
    from scipy.stats import t

    by_target = defaultdict(list)
    for target, value in values:
        by_target[target].append(value)
    means = [mean(by_target[target]) for target in sorted(by_target)]
    if len(means) < 2:
        return means[0], None
    return mean(means), float(t.ppf(0.975, len(means) - 1)) * stdev(means) / len(means) ** 0.5


COLUMNS: dict[str, tuple[str, Callable[[Row], Any], str]] = {
    "returns": ("returns in replay", lambda r: 100 * r.numbers["returns"] / r.numbers["replayed"], "{:.1f}%"),
    "strictly": ("below strangers", lambda r: _times(100, r.numbers.get("strictly")), "{:.0f}%"),
    "over": ("q95 − without it", lambda r: r.numbers.get("over"), "{:+.3f}"),
    "excess": ("q95 − stranger", lambda r: r.numbers["excess"], "{:+.3f}"),
    "worst": ("worst noise − stranger", lambda r: r.numbers["worst"], "{:+.3f}"),
    "nearest": ("to nearest real", lambda r: r.numbers["nearest_real"], "{:.3f}"),
    "kid": ("KID", lambda r: r.numbers["kid"], "{:.4f}"),
    "drift": ("drift", lambda r: r.numbers["drift"], "{:.4f}"),
    "ssim": ("1 − SSIM", lambda r: r.numbers["ssim_lost"], "{:.4f}"),
    "kept": ("others kept", lambda r: _times(100, r.numbers.get("kept")), "{:.1f}%"),
    "gold": ("to gold", lambda r: r.numbers.get("gold"), "{:.4f}"),
    "steps": ("steps", lambda r: r.numbers.get("steps"), "{:.0f}"),
    "cost": ("cost", lambda r: r.numbers.get("cost"), "{:.0f}"),
    "seconds": ("seconds", lambda r: r.numbers.get("seconds"), "{:.0f}"),
    "memory": ("MiB", lambda r: _times(2**-20, r.numbers.get("peak_bytes")), "{:.0f}"),
    "bytes": ("kB shipped", lambda r: _times(1e-3, r.numbers.get("shipped_bytes")), "{:.0f}"),
}


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def markdown(groups: Mapping[str, Sequence[Row]], bases: Sequence[str]) -> str:
    """One table: bases, and on each the groups in their order."""
    hotfix = {row.key: row for row in groups.get(HOTFIX, []) if row.numbers["suppressed"]}
    heads = ["base", "method", "setting", "suppressed", *(head for head, _, _ in COLUMNS.values()), "drift − hotfix's"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for base in [*([ALL] if len(bases) > 1 else []), *bases]:
        for name, rows in groups.items():
            picked = [row for row in rows if base in (ALL, row.base)]
            if picked:
                lines.append(f"| {' | '.join(_cells(base, name, picked, hotfix))} |")
    return "\n".join(lines) + "\n"


def _cells(base: str, name: str, rows: Sequence[Row], hotfix: Mapping[Key, Row]) -> list[str]:
    settings = sorted({row.setting for row in rows})
    rate = Rate.of(sum(bool(row.numbers["suppressed"]) for row in rows), len(rows))
    more = [
        ((row.base, row.target), row.numbers["drift"] - hotfix[row.key].numbers["drift"])
        for row in rows
        if row.key in hotfix and row.numbers["suppressed"] and _known(row, hotfix)
    ]
    cells = [base, name, settings[0] if len(settings) == 1 else f"{len(settings)} settings", str(rate)]
    for _, value, form in COLUMNS.values():
        cells.append(_cell([((row.base, row.target), value(row)) for row in rows], form))
    return [*cells, "" if name == HOTFIX else _cell(more, "{:+.4f}")]


def _known(row: Row, hotfix: Mapping[Key, Row]) -> bool:
    return row.numbers["drift"] is not None and hotfix[row.key].numbers["drift"] is not None


def _cell(values: Iterable[tuple[tuple[str, str], float | None]], form: str) -> str:
    there = [(target, value) for target, value in values if value is not None]
    if not there:
        return "–"
    middle, half = interval(there)
    return form.format(middle) if half is None else f"{form.format(middle)} ± {form.format(half).lstrip('+')}"
