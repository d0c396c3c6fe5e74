"""The table of published patches in the README, from their reports.

python patches/table.py
"""

from pathlib import Path

from hotfix.report import Report

HERE = Path(__file__).parent
HEAD = """\
| patch | target drawn, before | after | its surrogate | partial diffusion, t ≥ t_lo | others drawn right | drift |
| --- | --- | --- | --- | --- | --- | --- |"""


def row(folder: Path) -> str:
    report = Report.load(folder / "report.json")
    own, retain = report.replays[0], report.retain
    levels = [level for level in report.diffusion if level.t >= report.t_lo]
    before, after = (sum(getattr(level, when).k for level in levels) for when in ("before_rate", "after_rate"))
    cells = [
        f"[{folder.name}](patches/{folder.name}/README.md)",
        f"{own.before.k} of {own.before.n}",
        f"{own.after.k} of {own.after.n} (≤ {own.after.upper:.1%})",
        f"{own.surrogate.k} of {own.surrogate.n}" if own.caption == "own" and own.surrogate else "",
        f"{before} → {after} of {sum(level.after_rate.n for level in levels)}",
        f"{retain.before.k} → {retain.after.k} of {retain.after.n}" if retain.before and retain.after else "",
        f"{retain.drift_rmse:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    return "\n".join([HEAD, *(row(path.parent) for path in sorted(HERE.glob("*/report.json")))])


if __name__ == "__main__":
    print(table())
