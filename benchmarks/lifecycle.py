"""What a patch costs: while it is on, when it goes on, when another takes its place.

    python benchmarks/lifecycle.py [-o benchmarks/results/lifecycle.json] [--shape sd15 --shape sd3 --shape sdxl]

Models of the real sizes with random weights in bfloat16, on one thread. A CPU computes slowly in it: inference is
timed in float32, on the smallest shape only. The ways are timed in turn within one run, again and again, and compared
by their medians; inference by the median of the differences within each round. "Stock" is diffusers and peft as they
come, with the same file. Every part is kept in dist/lifecycle, so that a run may be stopped and gone on with.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from timeit import timeit
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import pico  # noqa: E402
from patching import component, denoiser, random_patch  # noqa: E402

from benchmarks.kept import kept, write  # noqa: E402
from hotfix import console, reach  # noqa: E402
from hotfix.demo import fingerprint  # noqa: E402
from hotfix.patch import Patch  # noqa: E402
from hotfix.stack import Stack  # noqa: E402

RANK, PATCHES, ROUNDS = 8, 10, 12
SDXL = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SHAPES: Mapping[str, Callable[[], nn.Module]] = {
    "sd15": lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
    "sdxl": lambda: UNet2DConditionModel(**SDXL),
    "sd3": lambda: SD3Transformer2DModel(
        sample_size=128, num_layers=24, num_attention_heads=24, pos_embed_max_size=192
    ),
}


@contextmanager
def dtype(kind: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def pipeline(shape: str, kind: torch.dtype) -> Any:
    """A small pipeline of that class with a denoiser of the real size."""
    pipe = pico.HOSTS[shape]()
    torch.manual_seed(0)
    with dtype(kind):
        network = SHAPES[shape]().eval().requires_grad_(False)
    pipe.register_modules(**{component(pipe): network})
    return pipe


def seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def in_turn(ways: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Every way once, then every way again: seconds of each."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, measure in ways.items():
            gc.collect()
            found[way].append(round(measure(), 4))
    return found


# While it is on


@torch.no_grad()
def inference(folder: Path) -> dict[str, Any]:
    pipe = pipeline("sd15", torch.float32)
    network = denoiser(pipe)
    patches = [random_patch(pipe, f"patch-{i}", i, rank=RANK) for i in range(PATCHES)]
    files = [patch.save(folder) for patch in patches]
    x, words = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 768)

    def shortest() -> float:
        return min(seconds(lambda: network(x, 500, encoder_hidden_states=words)) for _ in range(3))

    def beside(count: int, fold: bool = False) -> float:
        stack = Stack.of(*patches[:count])
        stack.apply(pipe, fold=fold)
        took = shortest()
        stack.remove(pipe)
        return took

    def stock(count: int) -> float:
        for i in range(count):
            pipe.load_lora_weights(files[i], adapter_name=f"patch-{i}")
        pipe.set_adapters([f"patch-{i}" for i in range(count)])
        took = shortest()
        pipe.unload_lora_weights()
        return took

    found = in_turn(
        {
            "bare": shortest,
            "beside, 1": lambda: beside(1),
            "stock, 1": lambda: stock(1),
            "beside, 10": lambda: beside(PATCHES),
            "stock, 10": lambda: stock(PATCHES),
            "folded, 10": lambda: beside(PATCHES, fold=True),
        }
    )
    ratio, more = paired(found, "folded, 10", lambda way, bare: way / bare), partial(paired, found)
    return {
        "seconds of one forward pass": found,
        "folded against bare": ratio,
        "overhead, seconds": {way: more(way, lambda way, bare: way - bare) for way in found if way != "bare"},
        **{
            f"overhead of {count} beside, against stock": round(
                more(f"beside, {count}", lambda way, bare: way - bare)
                / more(f"stock, {count}", lambda way, bare: way - bare),
                3,
            )
            for count in (1, PATCHES)
        },
    }


def paired(found: Mapping[str, list[float]], way: str, compare: Callable[[float, float], float]) -> float:
    """The median over the rounds of a way compared with the bare pipeline in the same round."""
    return round(statistics.median(compare(*both) for both in zip(found[way], found["bare"], strict=True)), 4)


# When it goes on


def loading(shape: str, folder: Path) -> dict[str, Any]:
    pipe = pipeline(shape, torch.bfloat16)
    file = random_patch(pipe, f"patch-{shape}", 1, rank=RANK).save(folder)

    def ours() -> float:
        stack: list[Stack] = []

        def load() -> None:
            stack.append(Stack.of(Patch.load(file)))
            stack[0].apply(pipe)

        took = seconds(load)
        stack[0].remove(pipe)
        return took

    def stock() -> float:
        took = seconds(lambda: pipe.load_lora_weights(file, adapter_name="patch"))
        pipe.unload_lora_weights()
        return took

    found = in_turn({"hotfix": ours, "stock": stock})
    patch = Patch.load(file)
    with Stack.of(patch).on(pipe):
        network = denoiser(pipe)
        reach.check(network)
        per_call = min(timeit(lambda: reach.check(network, step=True), number=100) for _ in range(ROUNDS)) / 100
    return {
        "layers": len(patch.layers),
        "bytes": file.stat().st_size,
        "seconds from the file": found,
        "against stock": round(statistics.median(found["hotfix"]) / statistics.median(found["stock"]), 3),
        "guard, microseconds a call": round(per_call * 1e6, 1),
    }


# When another takes its place


@torch.no_grad()
def replacing() -> dict[str, Any]:
    """The longest step of a generation in which the patch is replaced over and over, against its median step."""
    pipe = pipeline("sd15", torch.float32)
    network = denoiser(pipe)
    one, two = (Stack.of(random_patch(pipe, f"patch-{i}", i, rank=RANK)) for i in (1, 2))
    one.apply(pipe)
    x, words, steps, stop, replaced = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 768), [], threading.Event(), []

    def replace() -> None:
        on, other = one, two
        while not stop.is_set():
            replaced.append(seconds(lambda on=on, other=other: on.replace(pipe, other)))
            on, other = other, on
            time.sleep(0.2)

    def step() -> float:
        return seconds(lambda: network(x, 500, encoder_hidden_states=words))

    alone = [step() for _ in range(20)]
    thread = threading.Thread(target=replace)
    thread.start()
    steps = [step() for _ in range(20)]
    stop.set()
    thread.join()
    return {
        "replacements": len(replaced),
        "median seconds of a replacement": round(statistics.median(replaced), 4),
        "median step, seconds": round(statistics.median(alone), 4),
        "longest step alone": round(max(alone), 4),
        "longest step while replacing": round(max(steps), 4),
        "pause in steps": round((max(steps) - statistics.median(alone)) / statistics.median(alone), 2),
    }


def cycles(family: str, kind: torch.dtype, *, fold: bool) -> int:
    """Tensors that differ after a hundred changes."""
    pipe = pico.HOSTS[family]()
    denoiser(pipe).to(kind)
    original, state = fingerprint(pipe), {k: v.clone() for k, v in denoiser(pipe).named_parameters()}
    stacks = [Stack.of(*(random_patch(pipe, f"patch-{i}", i) for i in range(n))) for n in (1, 2, 3)]
    order = torch.randint(3, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    on = stacks[order[0]]
    on.apply(pipe, fold=fold)
    for n in order[1:]:
        on.replace(pipe, stacks[n])
        on = stacks[n]
    on.remove(pipe)
    assert fingerprint(pipe) == original
    return sum(not torch.equal(p, state[name]) for name, p in denoiser(pipe).named_parameters())


def all_cycles() -> dict[str, int]:
    return {
        f"{family}, {str(kind).removeprefix('torch.')}, {'folded' if fold else 'beside'}": cycles(
            family, kind, fold=fold
        )
        for family in pico.HOSTS
        for kind in (torch.float32, torch.bfloat16, torch.float16)
        for way in ("beside", "folded")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "lifecycle.json")
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES), help="to load patches onto; default: all")
    args = parser.parse_args()
    console.quiet_libraries()
    torch.set_num_threads(1)
    about = {name: version(name) for name in ("torch", "diffusers", "peft")} | {"threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as name:
        parts: dict[str, Callable[[], Any]] = {
            "tensors that differ after 100 changes": all_cycles,
            "inference, sd15": partial(inference, Path(name)),
            "replacing, sd15": replacing,
        }
        parts |= {f"loading, {shape}": partial(loading, shape, Path(name)) for shape in args.shape or SHAPES}
        result: dict[str, Any] = {"date": datetime.now(UTC).strftime("%Y-%m-%d")} | about
        for part, measure in parts.items():
            result[part] = kept(ROOT / "dist" / "lifecycle" / f"{part}.json", about, measure)
            console.say(f"{part}: {result[part]}")
    write(args.out, result)


if __name__ == "__main__":
    with console.door():
        main()
