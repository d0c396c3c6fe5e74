"""The table and the plot of `benchmarks/forget.py`, from the files it left; the same files give the same bytes.

    python benchmarks/forget_table.py benchmarks/results/forget [-o FOLDER]

Writes forget.md and forget.svg, and ablations.md where ablations were run, into FOLDER (the first folder if not given).
How the best setting of a rival is chosen, and what ± means, is said in benchmarks/forgetting/table.py and below the
table; the columns are those of benchmarks/forgetting/measure.py.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.forgetting import best, measure, plot, table  # noqa: E402
from benchmarks.forgetting.settings import HOTFIX  # noqa: E402
from hotfix import console  # noqa: E402
from hotfix.container import write_atomically  # noqa: E402
from hotfix.errors import HotfixError  # noqa: E402


def page(title: str, body: str, refused: list[str]) -> str:
    """A table with what its words mean, and what is not in it."""
    meaning = "\n\n".join(_after_first_line(module.__doc__) for module in (table, best, measure))
    missing = "\n".join(f"- {line}" for line in refused)
    return f"# {title}\n\n{body}\n{meaning}\n" + (f"\nRefused, and in no row:\n\n{missing}\n" if refused else "")


def _after_first_line(doc: str | None) -> str:
    return (doc or "").partition("\n")[2].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    out = args.out or args.results
    rows = best.read(args.results)
    if not any(row.method == HOTFIX for row in rows):
        raise HotfixError(
            f"{args.results} holds no hotfix unit", hint="python benchmarks/forget.py --only '*/hotfix/*'"
        )
    bases = sorted({row.base for row in rows})
    refused, shown, changed = best.failures(args.results), table.methods(rows), table.changes(rows)
    pages = {"forget.md": page("Hotfix and ten published objectives", table.markdown(shown, bases), refused)}
    if len(changed) > 1:
        pages["ablations.md"] = page("Hotfix with one thing changed", table.markdown(changed, bases), refused)
    pages["forget.svg"] = plot.svg(rows, shown, bases)
    for name, text in pages.items():
        write_atomically(out / name, text.encode())
        print(out / name)


if __name__ == "__main__":
    with console.door():
        main()
