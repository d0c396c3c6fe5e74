"""What a score costs: the bundled flags patch at several n, every run in a process of its own.

    python benchmarks/score.py [-o benchmarks/results/score.json] [--n 15 29 58] [--threads 2]

29 pictures are `hotfix score --quick`. Besides the time on the clock, which other work on the machine moves, it says
how many seconds of a processor the run took; a line through these is what does not depend on n, and a picture's part.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.kept import kept, write  # noqa: E402
from hotfix import console  # noqa: E402
from hotfix.patch import Patch  # noqa: E402

FOLDER = ROOT / "patches" / "mauritania-2017"
SCORE = """\
import sys
from pathlib import Path
from hotfix import console
console.quiet_libraries()
from hotfix.patch import Patch
from hotfix.pipeline import load_pipeline
from hotfix.recipe import Recipe
from hotfix.scoring import score
from hotfix.stack import Stack
folder = Path(sys.argv[1])
recipe = Recipe.load(folder / "recipe.toml")
stack = Stack.of(Patch.load(next(folder.glob("*.safetensors"))))
score(load_pipeline(recipe), recipe, stack=stack, n=int(sys.argv[2]))
"""


def run(n: int, threads: int) -> dict[str, Any]:
    """One score from the start of the process to its end."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    known = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", SCORE, FOLDER, str(n)], env=known, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"n": n, "clock, s": round(time.monotonic() - start, 1), "processor, s": round(spent, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "score.json")
    parser.add_argument("--n", type=int, nargs="+", default=[15, 29, 58])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    about = {"patch": Patch.load(next(FOLDER.glob("*.safetensors"))).id, "threads": args.threads}
    rows = []
    for n in args.n:
        pieces = ROOT / "dist" / "score" / f"{args.threads}-{n}.json"
        pieces.parent.mkdir(parents=True, exist_ok=True)
        rows.append(kept(pieces, about, partial(run, n, args.threads)))
        console.say(str(rows[-1]))
    each, fixed = np.polyfit([row["n"] for row in rows], [row["processor, s"] for row in rows], 1)
    line = {"whatever n, s": round(float(fixed), 1), "for each picture, s": round(float(each), 2)}
    write(args.out, {"date": datetime.now(UTC).date().isoformat(), **about, "runs": rows, "processor": line})


if __name__ == "__main__":
    main()
