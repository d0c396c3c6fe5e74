"""Partial diffusion: pictures noised to a level and denoised again. And any drawing twice: without a stack, with it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hotfix.case import Target
from hotfix.denoiser import Denoiser
from hotfix.shapes import Latents, Pictures
from hotfix.stack import Stack

LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
STEPS = 12  # denoising steps from any level
NOISES_SHARE = 4  # partial diffusion costs most: one noise for every four pictures of a replay
# Seeds of a score's parts, far from a build's.
REPLAY, PARTIAL, KEEP, ATTACK, MEMBERSHIP = 10_000, 20_000, 30_000, 40_000, 60_000


@torch.no_grad()
def back(denoiser: Denoiser, x: Latents, eps: Latents, t: float, rows: Mapping[str, Tensor], kind: str) -> Pictures:
    """What becomes of pictures that were noised to level t.

    Args:
        denoiser: patched or not.
        x: latents of the pictures, (B, C, H, W).
        eps: their noise, same shape.
        t: noise level in (0, 1].
        rows: a condition for every picture, or for more.
        kind: of the captions; under their own, guidance is that of the production call, under others there is none.
    """
    x_t = denoiser.noised(x, torch.full((len(x),), t, device=x.device), eps)
    rows = {k: v[: len(x)] for k, v in rows.items()}
    guidance = denoiser.guidance if kind == "own" else 1.0
    return denoiser.decode(denoiser.denoise(x_t, t, rows, steps=STEPS, guidance=guidance)).cpu()


def in_turn(targets: Sequence[Target], n: int, seed: int) -> tuple[Tensor, Latents, Latents]:
    """Which target each of n drawings starts from, the targets' latents in that order, and a noise for each."""
    turn = torch.arange(n) % len(targets)
    x = torch.cat([target.x_f for target in targets])
    eps = torch.randn((n, *x.shape[1:]), generator=torch.Generator().manual_seed(seed)).to(x.device)
    return turn, x[turn.to(x.device)], eps


def cycled(captions: Sequence[str], n: int, each: int = 1) -> list[str]:
    """A caption for every drawing, over and over again; so many drawings, of one target each, before the next one."""
    return [captions[i // each % len(captions)] for i in range(n)]


def twice(pipe: Any, stack: Stack, draw: Callable[[], Pictures]) -> tuple[Pictures, Pictures]:
    """What is drawn without the stack, and with it."""
    before = draw()
    with stack.on(pipe):
        return before, draw()
