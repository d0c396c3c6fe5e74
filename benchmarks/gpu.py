"""Whole builds on bases as large as the published ones, on one GPU: seconds, peak memory, share of its matmul rate.

    python benchmarks/gpu.py [-o benchmarks/results/gpu.json] [--only sd3] [--steps 300]
    python benchmarks/gpu.py --small -o dist/gpu-small.json        whether it runs, on any machine; no verdict

Bases have random weights (`benchmarks/shapes.py`), are saved to a folder for the length of their row and loaded from
it, as a user's are. They know no target: every trial ends at its first failure, so that a build on a model that knows
one takes longer by its trials, and shorter by the steps that it does not need. What must stay are 32 drawings, batches
are of 4, and the calls take 20 steps.

Every row is measured in a process of its own, from loading on: its peak is of all that was ever on the GPU. FLOPs are
those that torch counts in one step of the loop (matrix products, convolutions and attention; what checkpointing
computes again among them), its seconds the median of all steps without a trial, and the rate of the GPU that of a
product of two matrices of 8192 x 8192 in bfloat16. Products of quantised weights are not counted: such a row has no
share. Each row is kept in dist/gpu, so that a run may be stopped and gone on with.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import pico  # noqa: E402
from conftest import picture  # noqa: E402

from benchmarks import shapes  # noqa: E402
from benchmarks.kept import kept, write  # noqa: E402
from hotfix import console, cost  # noqa: E402
from hotfix.building import build  # noqa: E402
from hotfix.denoiser import Denoiser  # noqa: E402
from hotfix.errors import HotfixError  # noqa: E402
from hotfix.pipeline import load_pipeline  # noqa: E402
from hotfix.recipe import Recipe  # noqa: E402
from hotfix.scoring import hardware  # noqa: E402
from hotfix.train import TRIAL_EVERY  # noqa: E402

GIB = 2**30
SHARE = 0.45  # of the matmul rate
BARS = {"sd15": (60, 6 * GIB), "sdxl": (180, 12 * GIB), "sd3": (180, 12 * GIB), "flux": (600, 24 * GIB)}
# What of [base] and [train] is not the default's: as little memory as the bar leaves.
GUIDED = {"num_inference_steps": 20}
WAYS: dict[str, dict[str, Any]] = {
    "sd15": {"base": {"call": GUIDED}},
    "sdxl": {"base": {"call": GUIDED}, "train": {"gradient_checkpointing": True}},
    "sd3": {
        "base": {"call": GUIDED | {"max_sequence_length": 256}, "offload": True},
        "train": {"gradient_checkpointing": True},
    },
    "flux": {
        "base": {"call": GUIDED | {"max_sequence_length": 512}, "bits": 4},
        "train": {"gradient_checkpointing": True, "micro_batch": 1},
    },
}
COUNTED = 5  # the step whose FLOPs are counted, and which is not timed


class Watch:
    """What `build` calls after every step."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.flops = 0
        self.open = ExitStack()

    def __call__(self, step: int, steps: int, facts: Any) -> None:
        self.at.append(time.perf_counter())
        if step == COUNTED - 1:
            self.counter = self.open.enter_context(FlopCounterMode(display=False))
        if step == COUNTED:
            self.open.close()
            self.flops = self.counter.get_total_flops()
            self.at[-1] = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of a step, median."""
        numbered = enumerate(pairwise(self.at), start=2)
        return statistics.median(b - a for i, (a, b) in numbered if i % TRIAL_EVERY and i != COUNTED)


def rate(device: torch.device, small: bool) -> float:
    """FLOPs in a second of matrix products, median of twenty."""
    side = 256 if small else 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    took = []
    for _ in range(25):
        began = time.perf_counter()
        (a @ b)[0, 0].item()
        took.append(time.perf_counter() - began)
    return 2 * side**3 / statistics.median(took[5:])


def save(name: str, folder: Path, device: torch.device, small: bool) -> None:
    """The base and the two pictures of a row."""
    pipe = pico.FAMILIES[name]() if small else shapes.made(name, device, torch.bfloat16)
    height, _ = Denoiser(pipe, pico.CALLS[name] if small else {}).size
    pipe.save_pretrained(folder / "base")
    for kind, number in (("forget", 1), ("surrogate", 2)):
        picture(number, height).save(folder / f"{kind}.png")


def recipe(name: str, folder: Path, steps: int, small: bool) -> Recipe:
    """Of a row."""
    way = {"base": {"call": pico.CALLS[name]}, "train": {"micro_batch": 1}} if small else WAYS[name]
    return Recipe.parse(
        {
            "name": f"shape-{name}",
            "base": {"pipeline": str(folder / "base"), "dtype": "float32" if small else "bfloat16"} | way["base"],
            "forget": {"images": ["forget.png"], "captions": ["a"]},
            "surrogate": {"kind": "files", "images": ["surrogate.png"]},
            "retain": {"prompts": ["b", "a b"], "size": 16 if small else 32},
            "train": {"steps": steps, "batch": 4, "retain_batch": 4} | way.get("train", {}),
        },
        folder=folder,
    )


def measure(name: str, folder: Path, device: torch.device, steps: int, small: bool) -> dict[str, Any]:
    """One build, from loading on."""
    of, watch, facts = recipe(name, folder, steps, small), Watch(), []
    most = rate(device, small)
    began = time.perf_counter()
    pipe = load_pipeline(of, device=device)
    loaded = time.perf_counter()
    loading, weights = cost.peaks()[1], torch.cuda.memory_allocated(device) if device.type == "cuda" else None
    build(of, pipe, progress=watch, stage=console.say, spent=facts.append)  # which counts its own peak
    peaks = [one for one in (loading, facts[0].gpu_bytes) if one is not None]
    counted = watch.flops if of.base.bits is None else 0
    return {
        "call": of.base.call,
        "bits": of.base.bits,
        "offload": of.base.offload,
        "train": of.train.model_dump(exclude_unset=True),
        "steps": facts[0].steps,
        "seconds": {"loading": round(loaded - began, 1), "build": facts[0].seconds, "step": round(watch.seconds, 4)},
        "FLOPs of a step": counted or None,
        "FLOPs in a second": {"of a step": counted / watch.seconds or None, "of matrix products": most},
        "share of the matmul rate": float(f"{counted / watch.seconds / most:.3g}") if counted else None,
        "bytes": {
            "loaded on the GPU": weights,
            "peak on the GPU": max(peaks, default=None),
            "peak on the host": facts[0].host_bytes,
        },
        "joules": facts[0].gpu_joules,
    }


def row(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Save in one process, measure in another."""
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        for part in ("save", "measure"):
            words = [f"--only={name}", f"--part={part}", f"--folder={folder}"]
            words += [f"--device={args.device}", f"--steps={args.steps}", *(["--small"] if args.small else [])]
            done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
    bar = BARS[name]
    return found | {"bars": {"seconds": bar[0], "bytes": bar[1], "share": SHARE if name == "sd3" else None}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(BARS), help="default: all")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="miniatures of the same classes on the CPU: does it run?")
    parser.add_argument("--scratch", type=Path, help="where bases are saved meanwhile: FLUX takes 34 GB")
    parser.add_argument("--part", choices=("save", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    console.quiet_libraries()
    if args.small:
        args.device = "cpu"
    device = torch.device(args.device)
    if args.part == "save":
        return save(args.only[0], args.folder, device, args.small)
    if args.part == "measure":
        return print(json.dumps(measure(args.only[0], args.folder, device, args.steps, args.small)))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise HotfixError("there is no GPU here", hint="--small runs miniatures on the CPU")
    about = {name: version(name) for name in ("torch", "diffusers", "peft")}
    about |= {"hardware": hardware(device), "steps": args.steps, "small": args.small}
    result: dict[str, Any] = {"date": datetime.now(UTC).strftime("%Y-%m-%d")} | about
    for name in args.only or BARS:
        path = ROOT / "dist" / ("gpu-small" if args.small else "gpu") / f"{name}.json"
        result[name] = kept(path, about | {"row": name}, partial(row, name, args))
        console.say(f"{name}: {json.dumps(result[name])}")
    write(args.out, result)


if __name__ == "__main__":
    with console.door():
        main()
