"""The cheap test inside a build: on held-out noise, is the target as unlike its picture as a stranger yet?

And where a caption asks for the target: does its surrogate come instead?
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from hotfix.calibrate import Window
from hotfix.case import Target
from hotfix.denoiser import Denoiser
from hotfix.shapes import Pictures
from hotfix.similarity import nearest

NOISES = 8  # for every kind of caption and level
STEPS = 8
INSTEAD = 0.95  # of the pictures drawn for the target's caption
HELD_OUT = 1_000_003  # added to the seed: noises that training never sees


def trial(
    denoiser: Denoiser,
    target: Target,
    strangers: Pictures,
    conditions: Mapping[str, Mapping[str, Tensor]],
    window: Window,
    seed: int,
) -> float:
    """How far the target is from passing; ≤ 0 passes.

    The larger of: 95th percentile of the similarity to x_f after partial diffusion, minus the stranger's; and, from
    pure noise under the target's own caption, 95% minus the share of pictures that are nearest to a surrogate.
    """
    generator = torch.Generator().manual_seed(seed + HELD_OUT)
    like, worst = [], -1.0
    for kind, condition in conditions.items():
        for level in (max(window.t_lo, 0.3), (1 + window.t_lo) / 2, *([1.0] if kind == "own" else [])):
            eps = torch.randn((NOISES, *target.x_f.shape[1:]), generator=generator).to(target.x_f.device)
            t = torch.full((NOISES,), level, device=eps.device)
            rows = {k: v[torch.randint(len(v), (NOISES,), generator=generator)] for k, v in condition.items()}
            x_t = denoiser.noised(target.x_f.expand_as(eps), t, eps)
            guidance = denoiser.guidance if kind == "own" else 1.0
            clean = denoiser.decode(denoiser.denoise(x_t, level, rows, steps=STEPS, guidance=guidance))
            like.append(target.similarity(clean.cpu()))
            if kind == "own" and level == 1.0:
                worst = INSTEAD - _share_of_surrogates(clean.cpu(), target, strangers)
    return max(worst, float(torch.cat(like).quantile(0.95)) - target.null)


def _share_of_surrogates(drawn: Pictures, target: Target, strangers: Pictures) -> float:
    known = torch.cat([target.surrogates, target.picture[None], strangers])
    return float((nearest(drawn, known) < len(target.surrogates)).float().mean())
