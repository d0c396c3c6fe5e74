"""The cheap test inside a build: on held-out noise, is the target as unlike its picture as a stranger yet?"""

from collections.abc import Mapping

import torch
from torch import Tensor

from hotfix.calibrate import Window
from hotfix.case import Target
from hotfix.denoiser import Denoiser

NOISES = 6  # for every kind of caption and level
STEPS = 8
HELD_OUT = 1_000_003  # added to the seed: noises that training never sees


def trial(
    denoiser: Denoiser,
    target: Target,
    conditions: Mapping[str, Mapping[str, Tensor]],
    window: Window,
    seed: int,
) -> float:
    """95th percentile of the similarity to x_f after partial diffusion, minus the stranger's: ≤ 0 passes.

    Levels are t_lo, half-way, and 1 under the target's own caption, where only the caption can bring it back.
    """
    generator = torch.Generator().manual_seed(seed + HELD_OUT)
    like = []
    for kind, condition in conditions.items():
        for level in (max(window.t_lo, 0.3), (1 + window.t_lo) / 2, *([1.0] if kind == "own" else [])):
            eps = torch.randn((NOISES, *target.x_f.shape[1:]), generator=generator).to(target.x_f.device)
            t = torch.full((NOISES,), level, device=eps.device)
            rows = {k: v[torch.randint(len(v), (NOISES,), generator=generator)] for k, v in condition.items()}
            x_t = denoiser.noised(target.x_f.expand_as(eps), t, eps)
            guidance = denoiser.guidance if kind == "own" else 1.0
            clean = denoiser.decode(denoiser.denoise(x_t, level, rows, steps=STEPS, guidance=guidance))
            like.append(target.similarity(clean.cpu()))
    return float(torch.cat(like).quantile(0.95)) - target.null
