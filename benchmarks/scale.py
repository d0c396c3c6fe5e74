"""What many patches at once cost: 1 to 1,000 on an SD3-shaped model, beside it and folded; on paper, 100,000.

    python benchmarks/scale.py [-o benchmarks/results/scale.json] [--most 1000]

The real SD3Transformer2DModel with 6 of its 24 blocks and half its width, random weights in float32, one thread;
patches of random factors, each as large against the weights as the median of the shipped flag patches. Directions drawn
at random are nearly orthogonal, so that ΔW grows with √N; how those of the shipped patches add up is measured too.
Every part is kept in dist/scale, so that a run may be stopped and gone on with.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import pico  # noqa: E402
from patching import layers, random_patch  # noqa: E402

from benchmarks.kept import kept, write  # noqa: E402
from hotfix import console, cost, reach  # noqa: E402
from hotfix.demo import fingerprint  # noqa: E402
from hotfix.fold import change, survival  # noqa: E402
from hotfix.patch import Patch  # noqa: E402
from hotfix.pipeline import load_pipeline  # noqa: E402
from hotfix.stack import Stack  # noqa: E402

COUNTS = (1, 3, 10, 30, 100, 300, 1000)
PAPER = (1_000, 10_000, 100_000)
KINDS = ("float32", "float16", "bfloat16")
RANK, ROUNDS = 4, 3
LATENT = 32  # 256 tokens
SHIPPED = ("honduras-2022", "iraq-2008", "kyrgyzstan-2023", "mauritania-2017", "syria-2025")
MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}


def pipeline() -> Any:
    """A small pipeline with the transformer in question."""
    pipe = pico.sd3()
    torch.manual_seed(0)
    network = SD3Transformer2DModel(sample_size=128, num_layers=6, num_attention_heads=12, caption_projection_dim=768)
    pipe.register_modules(transformer=network.eval().requires_grad_(False))
    return pipe


def change_of(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """W and ΔW of every layer that patches are beside."""
    on = reach.known(network).current.layers
    return [(layer.get_parameter("weight"), change(product)) for layer, product in on.items()]


def size(tensors: Sequence[Tensor]) -> float:
    """Their norm, as of one vector."""
    return sum(float(tensor.float().square().sum()) for tensor in tensors) ** 0.5


def ratio(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """‖ΔW‖ / ‖W‖."""
    return size([change for _, change in pairs]) / size([weight for weight, _ in pairs])


@torch.no_grad()
def shipped() -> dict[str, Any]:
    """Of the flag patches in this repository: how large each is, and how they add up."""
    pipe = load_pipeline("hotfix:flags")
    patches = [Patch.load(next((ROOT / "patches" / name).glob("*.safetensors"))) for name in SHIPPED]
    found = {}
    for stack in (*(Stack.of(patch) for patch in patches), Stack.of(*patches)):
        with stack.on(pipe):
            found[" + ".join(patch.name for patch in stack.patches)] = ratio(change_of(pipe.transformer))
    *alone, together = found.values()
    return {
        "‖ΔW‖ / ‖W‖": {name: round(number, 5) for name, number in found.items()},
        "median": round(statistics.median(alone), 5),
        "together, against orthogonal ones": round(together / sum(one**2 for one in alone) ** 0.5, 3),
    }


def seconds(action: Callable[[], Any]) -> float:
    """That the process had: the machine may have other work."""
    gc.collect()
    started = time.process_time()
    action()
    return round(time.process_time() - started, 4)


@torch.no_grad()
def stacked(patches: Sequence[Patch], pipe: Any) -> dict[str, Any]:
    """One stack: beside the weights and off again, folded and off again."""
    network, stack = pipe.transformer, Stack.of(*patches)
    draw = torch.Generator().manual_seed(0)
    shapes = ((1, 16, LATENT, LATENT), (1, 77, 4096), (1, 2048))
    x, words, pooled = (torch.randn(shape, generator=draw) for shape in shapes)

    def step() -> float:
        t = torch.tensor([500.0])
        return seconds(lambda: network(x, encoder_hidden_states=words, pooled_projections=pooled, timestep=t))

    def way(fold: bool) -> dict[str, float]:
        on, off, steps = [], [], []
        for _ in range(ROUNDS):
            on.append(seconds(lambda: stack.apply(pipe, fold=fold)))
            steps.append(step())
            off.append(seconds(lambda: stack.remove(pipe)))
        return {"on, seconds": min(on), "step, seconds": min(steps), "off, seconds": min(off)}

    before, bare, check = fingerprint(pipe), min(step() for _ in range(ROUNDS)), seconds(lambda: stack.check(pipe))
    beside, folded = way(fold=False), way(fold=True)
    with stack.on(pipe):
        pairs = change_of(network)
        drift, lost = ratio(pairs), {kind: 1 - survival(pairs, getattr(torch, kind)) for kind in KINDS}
        del pairs
    assert fingerprint(pipe) == before
    return {
        "‖ΔW‖ / ‖W‖": round(drift, 5),
        "of ΔW lost to rounding": {kind: float(f"{share:.2g}") for kind, share in lost.items()},
        "bytes of the patches": sum(entry.data.nbytes for patch in patches for entry in patch.entries.values()),
        "bytes kept of a folded base": sum(4 * out * into for out, into in dimensions(network)),
        "peak bytes of the process": cost.peaks()[0],
        "check, seconds": check,
        "step without patches, seconds": bare,
        "beside": beside,
        "folded": folded,
    }


def dimensions(network: nn.Module) -> list[tuple[int, int]]:
    """(out, in) of every layer that the patches act on."""
    return [tuple(network.get_submodule(name).weight.shape) for name in layers(network)]


def on_paper(count: int, rank: int, rate: float, one: float) -> dict[str, Any]:
    """What `count` patches of a rank need on the whole of SD3-medium, with the rate of products measured here.

    Args:
        count: N.
        rank: r.
        rate: multiplications and additions a second.
        one: ‖ΔW‖ / ‖W‖ of one patch.
    """
    with torch.device("meta"):
        shapes = dimensions(SD3Transformer2DModel(sample_size=128, **MEDIUM))
    both, full = sum(out + into for out, into in shapes), sum(out * into for out, into in shapes)
    return {
        "patches": count,
        "layers": len(shapes),
        "bytes of the patches, 4 N r Σ(in + out)": 4 * count * rank * both,
        "bytes kept, 4 Σ in·out": 4 * full,
        "operations of a fold, 2 N r Σ in·out": 2 * count * rank * full,
        "seconds of a fold, at the rate measured": round(2 * count * rank * full / rate),
        "operations of a step beside, against the layers' own, N r Σ(in + out) / Σ in·out": round(
            count * rank * both / full, 1
        ),
        "‖ΔW‖ / ‖W‖, orthogonal, √N": round(count**0.5 * one, 3),
        "‖ΔW‖ / ‖W‖, all alike, N": round(count * one, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "scale.json")
    parser.add_argument("--most", type=int, default=COUNTS[-1], help="patches in a stack")
    args = parser.parse_args()
    console.quiet_libraries()
    torch.set_num_threads(1)
    about = {name: version(name) for name in ("torch", "diffusers")} | {"threads": 1, "rank": RANK}
    part = partial(_part, about)
    result: dict[str, Any] = {"date": datetime.now(UTC).strftime("%Y-%m-%d")} | about
    result["shipped"] = part("shipped", shipped)
    one = result["shipped"]["median"]
    pipe, counts = pipeline(), [count for count in COUNTS if count <= args.most]
    patches: list[Patch] = []
    for count in counts:

        def measure(count: int = count) -> dict[str, Any]:
            patches.extend(random_patch(pipe, f"patch-{i}", i, RANK, one) for i in range(len(patches), count))
            return stacked(patches[:count], pipe)

        result[str(count)] = part(str(count), measure)
    shapes, most = dimensions(pipe.transformer), result[str(counts[-1])]
    work = 2 * counts[-1] * RANK * sum(out * into for out, into in shapes)
    rate = work / most["folded"]["on, seconds"]
    result["layers"], result["operations a second, in the largest fold"] = len(shapes), round(rate)
    result["on paper"] = {str(count): on_paper(count, RANK, rate, one) for count in PAPER}
    write(args.out, result)


def _part(about: Mapping[str, Any], name: str, measure: Callable[[], Any]) -> Any:
    found = kept(ROOT / "dist" / "scale" / f"{name}.json", about, measure)
    console.say(f"{name}: {found}")
    return found


if __name__ == "__main__":
    with console.door():
        main()
