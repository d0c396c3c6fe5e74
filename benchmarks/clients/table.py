"""The table of docs/clients.md, from benchmarks/results/clients.json.

python benchmarks/clients/table.py
"""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results/clients.json"
RESTORED = {True: "every byte", False: "no", None: "not run"}


def line(row: dict) -> str:
    """One row of Markdown."""
    if "difference" in row:
        apart = f"{row['difference']:.1e}"
        families = ", ".join(row["families"])
    else:
        apart = f"{row['difference of pictures']} of 255, where the patch moves {row['effect on the picture']}"
        families = row["families"][0]
    script = f"[{row['command'].split('/')[-1].split()[0]}](../{row['command'].split()[1]})"
    name = f"{row['client']} {row['version']}"
    cells = (name, row["form"], row["how"], families, apart, RESTORED[row["restored"]], row["date"], script)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    head = "| reader | form | how | on | largest difference | weights back | date | script |"
    print("\n".join([head, f"|{' --- |' * 8}", *map(line, json.loads(RESULTS.read_text()))]))


if __name__ == "__main__":
    main()
