"""Patches on models derived from their base: fine-tuned in all weights, and with a style LoRA merged in.

    python benchmarks/derivatives.py --threads 1 [-o benchmarks/results/derivatives.json]

A run may be stopped: what was measured of a derivative is in dist/derivatives, and not measured again.

The five published flag patches, all on at once, as built on `hotfix:flags`; the claim that is tested is Modular LoRA's
(arXiv:2412.00357) for suppression: train it beside the base, and put it on what others have made of the base.

Derivatives are made here and never saved. Fine-tunes: all weights of the denoiser, the ordinary flow-matching loss on
all 259 real flags, the outdated ones among them, at several rates. Style: a LoRA of the same loss on faded flags,
merged into the weights. There a drawing counts as a return in either style, and it is the faded target that is noised.

`Stack.check` takes the base alone, by a sketch distance of at most `hotfix.sketch.SAME`; the results say for each
derivative whether it would. To measure those that it refuses, the patches are put on the base, where it accepts them,
and the derivative's weights are laid beneath: a patch acts beside the weights, and no part of it is made from them.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.flags import accuracy, real_flags  # noqa: E402
from benchmarks.forgetting.distance import apart  # noqa: E402
from benchmarks.kept import kept, write  # noqa: E402
from benchmarks.rivals.prediction import target  # noqa: E402
from benchmarks.suppression import Asked, Style, flags, plain, pooled, returns, suppressed  # noqa: E402
from hotfix import beside, console  # noqa: E402
from hotfix.denoiser import Denoiser  # noqa: E402
from hotfix.fold import delta  # noqa: E402
from hotfix.lora import attached  # noqa: E402
from hotfix.patch import A, B, Patch  # noqa: E402
from hotfix.pipeline import load_pipeline  # noqa: E402
from hotfix.recipe import Recipe  # noqa: E402
from hotfix.shapes import Pictures  # noqa: E402
from hotfix.sketch import SAME, distance, sketch  # noqa: E402
from hotfix.stack import Stack  # noqa: E402

Weights = Mapping[str, Tensor]

HELD = 0.1  # share of training rows without a caption, as the base was trained
ROWS = 16
STEPS, RATES = 100, (1e-5, 1e-4, 1e-3)  # of the fine-tunes
STYLE_STEPS, STYLE_RATE, STYLE_RANK = 300, 2e-3, 8


def faded(pictures: Pictures) -> Pictures:
    """Flags that hung in the sun: less contrast, and a warm tint."""
    return 0.6 * pictures + torch.tensor([0.2, 0.05, -0.2])[:, None, None]


def train(
    denoiser: Denoiser,
    parameters: Sequence[nn.Parameter],
    captions: Sequence[str],
    pictures: Pictures,
    *,
    steps: int,
    lr: float,
    seed: int = 0,
) -> None:
    """The ordinary denoising loss with logit-normal noise levels, by AdamW, in place."""
    generator = torch.Generator().manual_seed(seed)
    x, conditions, empty = denoiser.encode(pictures), denoiser.embed(captions), denoiser.embed([""])
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(steps):
        which = torch.randint(len(x), (ROWS,), generator=generator)
        bare = torch.rand(ROWS, generator=generator) < HELD
        rows = {key: value[which] for key, value in conditions.items()}
        for key, value in empty.items():
            rows[key][bare] = value[0]
        t = torch.sigmoid(torch.randn(ROWS, generator=generator))
        eps = torch.randn(x[which].shape, generator=generator)
        out = denoiser.predict(denoiser.noised(x[which], t, eps), t, rows)
        loss = F.mse_loss(out, target(denoiser, x[which], eps, t))
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            p.grad = g
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    optimizer.zero_grad()


@contextmanager
def beneath(model: nn.Module, weights: Weights) -> Iterator[None]:
    """Lay other weights beneath whatever is on a model; the very tensors that were there come back."""
    parameters = dict(model.named_parameters())
    originals = {name: p.data for name, p in parameters.items()}
    try:
        for name, tensor in weights.items():
            parameters[name].data = tensor
        yield
    finally:
        for name, tensor in originals.items():
            parameters[name].data = tensor


def copied(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def fine_tuned(denoiser: Denoiser, captions: Sequence[str], pictures: Pictures, *, steps: int, lr: float) -> Weights:
    """All weights of the denoiser after some more training; the denoiser itself is left as it was."""
    model, weights = denoiser.model, copied(denoiser.model)
    learnt = {name: p.requires_grad for name, p in model.named_parameters()}
    with beneath(model, weights):
        model.requires_grad_(True)
        train(denoiser, list(model.parameters()), captions, pictures, steps=steps, lr=lr)
        for name, p in model.named_parameters():
            p.requires_grad_(learnt[name])
    return weights


def merged(denoiser: Denoiser, captions: Sequence[str], pictures: Pictures, *, steps: int, lr: float) -> Weights:
    """The weights with a LoRA of these pictures merged into them; the denoiser itself is left as it was."""
    weights = copied(denoiser.model)
    with attached(denoiser.model, denoiser.targets, STYLE_RANK, seed=0) as adapter:
        train(denoiser, adapter.parameters, captions, pictures, steps=steps, lr=lr)
        factors = adapter.tensors()
    for name in (name.removesuffix(A) for name in factors if name.endswith(A)):
        weights[f"{name}.weight"] += delta(factors[name + A], factors[name + B]).to(weights[f"{name}.weight"].device)
    return weights


def apart_from_base(denoiser: Denoiser, stack: Stack, weights: Weights) -> dict[str, Any]:
    """How far the weights are from the base's, and whether the stack may be put on them."""
    originals = copied(denoiser.model)
    change = sum(float((weights[name] - w).square().sum()) for name, w in originals.items())
    size = sum(float(w.square().sum()) for w in originals.values())
    with beneath(denoiser.model, weights):
        accepted = not stack.problems(denoiser.pipe)
        sketches = [patch.manifest.base.sketch for patch in stack.patches]
        found = [
            distance(numbers, sketch({name: beside.innermost(denoiser.model, name).weight for name in numbers}))
            for numbers in sketches
        ]
    return {
        "relative change of all weights": float(f"{(change / size) ** 0.5:.3g}"),
        "sketch distance": [round(min(found), 4), round(max(found), 4)],
        "Stack.check accepts": accepted,
    }


def measured(
    denoiser: Denoiser,
    stack: Stack,
    asked: Sequence[Asked],
    weights: Weights,
    style: Style,
    known: tuple[Sequence[str], Pictures],
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    """All numbers of one derivative, without and with the patches."""
    captions, real = known
    named = {caption for one in asked for caption in one.captions}
    rows = [i for i, caption in enumerate(captions) if caption not in named][:: sizes["every"]]

    def look(n: int) -> tuple[Any, Pictures, Tensor]:
        with beneath(denoiser.model, weights):
            found = {one.name: returns(denoiser, one, n, sizes["noises"]) for one in asked}
            return found, *flags(denoiser, captions, real, rows, 1, style)

    before, drawn_before, right_before = look(sizes["before"])
    with stack.on(denoiser.pipe):
        after, drawn, right = look(sizes["n"])
    old, new = ((drawn_before - form(real[rows])).square().mean(dim=(1, 2, 3)) for form in (plain, style))
    return apart_from_base(denoiser, stack, weights) | {
        "drawn in the new style": None if style is plain else round(float((new < old).float().mean()), 3),
        "without": {"returns": pooled(list(before.values())), "other flags": accuracy(right_before, right_before)},
        "with": {
            "returns": pooled(list(after.values())),
            "targets that return": {name: row for name, row in after.items() if not suppressed(row)},
            "other flags": accuracy(right, right_before),
            "drift RMSE in [0, 1]": round(apart(drawn, drawn_before), 6),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "derivatives.json")
    parser.add_argument("--n", type=int, default=60, help="seeds under each target's own caption, with the patches")
    parser.add_argument("--before", type=int, default=20, help="the same without them")
    parser.add_argument("--noises", type=int, default=16, help="of partial diffusion, at every level")
    parser.add_argument("--every", type=int, default=2, help="of the other flags, every so many-th")
    parser.add_argument("--steps", type=int, help="most steps of any training: only to see that it works")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    console.quiet_libraries()
    if args.threads:
        torch.set_num_threads(args.threads)
    folders = sorted(path.parent for path in ROOT.glob("patches/*-20*/*.safetensors"))
    recipes = [Recipe.load(folder / "recipe.toml") for folder in folders]
    stack = Stack.of(*(Patch.load(next(folder.glob("*.safetensors"))) for folder in folders))
    denoiser = Denoiser(load_pipeline("hotfix:flags"), recipes[0].base.call)
    known = real_flags()
    few = args.steps or max(STEPS, STYLE_STEPS)
    steps, style_steps = min(STEPS, few), min(STYLE_STEPS, few)
    made: dict[str, tuple[Style, Callable[[], Weights]]] = {"the base itself": (plain, lambda: copied(denoiser.model))}
    for lr in RATES:
        tune = partial(fine_tuned, denoiser, *known, steps=steps, lr=lr)
        made[f"fine-tuned, {steps} steps at {lr:g}"] = (plain, tune)
    fade = partial(merged, denoiser, known[0], faded(known[1]), steps=style_steps, lr=STYLE_RATE)
    made[f"style LoRA merged, rank {STYLE_RANK}, {style_steps} steps at {STYLE_RATE:g}"] = (faded, fade)
    sizes = {key: getattr(args, key) for key in ("n", "before", "noises", "every")}
    about = sizes | {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows of a training step": ROWS,
        "patches": {patch.name: patch.id for patch in stack.patches},
        "sketch distance that Stack.check accepts": SAME,
    }

    def numbers(style: Style, make: Callable[[], Weights]) -> dict[str, Any]:
        started, styles = time.process_time(), (plain,) if style is plain else (plain, style)
        asked = [
            Asked.of(recipe, patch.manifest.scope.t_lo, known[1], styles)
            for recipe, patch in zip(recipes, stack.patches, strict=True)
        ]
        found = measured(denoiser, stack, asked, make(), style, known, sizes)
        return found | {"CPU seconds": round(time.process_time() - started)}

    done = {}
    for i, (name, made_so) in enumerate(made.items()):
        console.say(name)
        path = ROOT / "dist" / "derivatives" / f"{i}.json"
        done[name] = kept(path, about | {"derivative": name}, partial(numbers, *made_so))
        console.say(json.dumps(done[name], indent=1))
    write(args.out, {"date": datetime.now(UTC).strftime("%Y-%m-%d")} | about | {"derivatives": done})


if __name__ == "__main__":
    with console.door():
        main()
