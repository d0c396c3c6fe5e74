"""What a second process saves: one build of patches/mauritania-2017 on one process and on two, a core for each.

    python benchmarks/processes.py [-o benchmarks/results/processes.json] [--steps 250]

The processes are started as `accelerate launch` starts those of a CPU, one thread each, pinned. Seconds are the
clock's, of a whole build and of its parts; the machine must have nothing else to do, or both wait for the core that was
taken away. So a step's seconds are the processor's too, which leave waiting out. Builds of a case take the same steps.

What two cores of one machine can give at all is measured beside it: two processes that share nothing but its memory
pass rows through the same network, alone and at once ("two that share nothing", in rounds one after the other).
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
from statistics import median

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.kept import write  # noqa: E402
from hotfix import console, processes  # noqa: E402
from hotfix.building import build  # noqa: E402
from hotfix.denoiser import Denoiser  # noqa: E402
from hotfix.patch import Patch  # noqa: E402
from hotfix.pipeline import load_pipeline  # noqa: E402
from hotfix.recipe import Recipe  # noqa: E402
from hotfix.scoring import hardware  # noqa: E402

PARTS = ("preparing surrogates and what must stay", "calibrating the timestep window", "training")
BAR = 1.8
CASES = ((8, 12), (16, 24))  # rows of a step: as the recipe has them, and twice as many
ROUNDS, PASSES, ROWS = 3, 40, 10


def worker(steps: int, rows: tuple[int, int], out: Path) -> None:
    """One of the processes: build, and say how long the parts took."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["LOCAL_RANK"])]})
    torch.set_num_threads(1)
    recipe = Recipe.load(ROOT / "patches/mauritania-2017/recipe.toml")
    options = {"steps": steps, "batch": rows[0], "retain_batch": rows[1]}
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=options)})
    at, ticks = {}, []
    patch = build(
        recipe,
        load_pipeline(recipe),
        stage=lambda words: at.setdefault(words, time.perf_counter()),
        progress=lambda *_: ticks.append((time.perf_counter(), time.process_time())),
    )
    end = time.perf_counter()
    first, second, third = (at[part] for part in PARTS)
    if processes.first():
        patch.save(out)
        clock, processor = (median(now - before for before, now in pairwise(one)) for one in zip(*ticks, strict=True))
        last = ticks[-1][0]
        facts = {"all": end - first, PARTS[0]: second - first, PARTS[1]: third - second, "loop": last - third}
        facts |= {"bisection": end - last, "median step": clock, "median step, processor": processor}
        rounded = {part: round(seconds, 3) for part, seconds in facts.items()}
        (out / "facts.json").write_text(json.dumps({"seconds": rounded, "steps": len(ticks)}))


def built(count: int, steps: int, rows: tuple[int, int], out: Path) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", __file__]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    options = ["--steps", str(steps), "--rows", *map(str, rows), "-o", str(out)]
    subprocess.run([*command, *options], env=environment, check=True)
    return json.loads((out / "facts.json").read_text())


def compared(steps: int, rows: tuple[int, int]) -> dict:
    """One process and two, on so many forget and retain rows a step."""
    found, patches = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, 2):
            out = Path(folder, str(count))
            out.mkdir()
            found[count] = built(count, steps, rows, out)
            patches.append(Patch.load(out / "mauritania-2017-1.0.0.safetensors"))
    one, two = (patch.tensors for patch in patches)
    apart = sum(float((one[key] - two[key]).square().sum()) for key in one) ** 0.5
    size = sum(float(one[key].square().sum()) for key in one) ** 0.5
    times = {part: round(seconds / found[2]["seconds"][part], 2) for part, seconds in found[1]["seconds"].items()}
    return {
        "rows of a step": rows,
        "one process": found[1],
        "two processes": found[2],
        "times as fast": times,
        "relative difference of the factors": round(apart / size, 6),
        "strength": [patch.manifest.strength for patch in patches],
    }


def passing(core: int) -> float:
    """Median seconds of a pass forth and back, on one core."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})
    torch.set_num_threads(1)
    denoiser = Denoiser(load_pipeline("hotfix:flags"), {})
    rows, x = denoiser.embed(["mauritania"] * ROWS), torch.randn(ROWS, *denoiser.latent_shape)
    laps = []
    for _ in range(PASSES):
        begun = time.perf_counter()
        denoiser.predict(x, torch.full((ROWS,), 0.5), rows).square().mean().backward()
        denoiser.model.zero_grad()
        laps.append(time.perf_counter() - begun)
    return median(laps)


def apart() -> dict:
    """How much faster two cores pass the same rows than one does, in processes that have nothing to tell each other."""
    rounds = []
    for _ in range(ROUNDS):
        rounds.append((*_passing((0,)), *_passing((0, 1))))
    times = [2 * one / ((first + second) / 2) for one, first, second in rounds]
    return {"seconds: alone, and of two": rounds, "times as fast": [round(t, 2) for t in times]}


def _passing(cores: tuple[int, ...]) -> list[float]:
    command = [sys.executable, __file__, "--core"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([*command, str(core)], env=environment, stdout=subprocess.PIPE) for core in cores]
    return [round(float(one.communicate()[0].split()[-1]), 4) for one in running]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "processes.json")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--rows", type=int, nargs=2, default=CASES[0], help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    console.quiet_libraries()
    if args.core is not None:
        print(passing(args.core))
        return
    if "LOCAL_RANK" in os.environ:
        worker(args.steps, args.rows, args.out)
        return
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **{name: version(name) for name in ("torch", "diffusers", "accelerate")},
        "hardware": f"{hardware(torch.device('cpu'))}; a process is pinned to one core and has one thread",
        "bar": BAR,
        "two that share nothing": apart(),
        "cases": [compared(args.steps, rows) for rows in CASES],
    }
    write(args.out, result)
    console.say(json.dumps(result, indent=1))


if __name__ == "__main__":
    with console.door():
        main()
