"""What a second process saves: one build of patches/mauritania-2017 on one process and on two, a core for each.

    python benchmarks/processes.py [-o benchmarks/results/processes.json] [--steps 250]

The processes are started as `accelerate launch` starts those of a CPU, one thread each, pinned. Seconds are the
clock's, of a whole build and of its parts; the machine must have nothing else to do. Both builds take the same steps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.kept import write  # noqa: E402
from hotfix import console, processes  # noqa: E402
from hotfix.building import build  # noqa: E402
from hotfix.patch import Patch  # noqa: E402
from hotfix.pipeline import load_pipeline  # noqa: E402
from hotfix.recipe import Recipe  # noqa: E402
from hotfix.scoring import hardware  # noqa: E402

PARTS = ("preparing surrogates and what must stay", "calibrating the timestep window", "training")
BAR = 1.8


def worker(steps: int, out: Path) -> None:
    """One of the processes: build, and say how long the parts took."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["LOCAL_RANK"])]})
    torch.set_num_threads(1)
    recipe = Recipe.load(ROOT / "patches/mauritania-2017/recipe.toml")
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps})})
    at, ticks = {}, []
    patch = build(
        recipe,
        load_pipeline(recipe),
        stage=lambda words: at.setdefault(words, time.perf_counter()),
        progress=lambda *_: ticks.append(time.perf_counter()),
    )
    end = time.perf_counter()
    first, second, third = (at[part] for part in PARTS)
    if processes.first():
        patch.save(out)
        laps = sorted(now - before for before, now in pairwise(ticks))
        facts = {"all": end - first, PARTS[0]: second - first, PARTS[1]: third - second, "loop": ticks[-1] - third}
        facts |= {"bisection": end - ticks[-1], "median step": laps[len(laps) // 2]}
        rounded = {part: round(seconds, 3) for part, seconds in facts.items()}
        (out / "facts.json").write_text(json.dumps({"seconds": rounded, "steps": len(ticks)}))


def built(count: int, steps: int, out: Path) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", __file__]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--steps", str(steps), "-o", str(out)], env=environment, check=True)
    return json.loads((out / "facts.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "processes.json")
    parser.add_argument("--steps", type=int, default=250)
    args = parser.parse_args()
    console.quiet_libraries()
    if "LOCAL_RANK" in os.environ:
        worker(args.steps, args.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        found, patches = {}, []
        for count in (1, 2):
            out = Path(folder, str(count))
            out.mkdir()
            found[count] = built(count, args.steps, out)
            patches.append(Patch.load(out / "mauritania-2017-1.0.0.safetensors"))
    one, two = (patch.tensors for patch in patches)
    apart = sum(float((one[key] - two[key]).square().sum()) for key in one) ** 0.5
    size = sum(float(one[key].square().sum()) for key in one) ** 0.5
    times = {part: round(seconds / found[2]["seconds"][part], 2) for part, seconds in found[1]["seconds"].items()}
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **{name: version(name) for name in ("torch", "diffusers", "accelerate")},
        "hardware": f"{hardware(torch.device('cpu'))}; a process is pinned to one core and has one thread",
        "bar": BAR,
        "one process": found[1],
        "two processes": found[2],
        "times as fast": times,
        "relative difference of the factors": round(apart / size, 6),
        "strength": [patch.manifest.strength for patch in patches],
    }
    write(args.out, result)
    console.say(json.dumps(result, indent=1))


if __name__ == "__main__":
    with console.door():
        main()
