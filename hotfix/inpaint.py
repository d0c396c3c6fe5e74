"""A surrogate that is x_f everywhere but in one region, which the base draws again: identity goes, background stays."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hotfix.denoiser import Denoiser
from hotfix.errors import RecipeError
from hotfix.gate import Chosen, Gate
from hotfix.shapes import Latents, Picture, Pictures

CANDIDATES = 16
STEPS = 16  # denoising steps of an edit
NOISES = 8  # noisy copies of x_f that show what the base knows of it
NEIGHBOURS = 16
STRENGTHS = (0.6, 0.7, 0.8, 0.9, 1.0)  # noise levels that edits start from, the nearest edits first


@torch.no_grad()
def region(denoiser: Denoiser, picture: Picture, bank: Pictures, like: Tensor, t: float, seed: int) -> Tensor:
    """Where the base brings back x_f and its neighbours look otherwise: what is x_f's own, (H, W) in {0, 1}.

        e = mean_j |x_j - x_f|  -  mean_k |x_hat(x_t, k) - x_f|        the mask is e > max e / 2, grown by one pixel

    Args:
        denoiser: the unpatched base.
        picture: x_f.
        bank: retain pictures.
        like: similarity of every retain picture to x_f; the nearest are the neighbours.
        t: noise level at which the base still brings back x_f.
        seed: of the noise.

    Raises:
        RecipeError: there is no such place.
    """
    near = bank[like.topk(min(NEIGHBOURS, len(bank))).indices]
    x = denoiser.encode(picture[None]).expand(NOISES, -1, -1, -1)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device)
    level = torch.full((NOISES,), t, device=x.device)
    empty = {k: v.expand(NOISES, *v.shape[1:]) for k, v in denoiser.embed([""]).items()}
    back = denoiser.decode(denoiser.x_hat(denoiser.noised(x, level, eps), level, empty)).cpu()
    own = (near - picture).abs().mean(dim=(0, 1)) - (back - picture).abs().mean(dim=(0, 1))
    if float(own.max()) <= 0:
        raise RecipeError(
            "the base brings no part of the forget picture back better than its neighbours already have it",
            hint="draw the region to change yourself: surrogate.mask",
        )
    mask = (own > own.max() / 2).float()
    return F.max_pool2d(mask[None, None], 3, stride=1, padding=1)[0, 0]


def inpaint(denoiser: Denoiser, picture: Picture, mask: Tensor, gate: Gate, count: int, seed: int) -> Chosen:
    """Edits of x_f inside the mask, from the weakest noise whose edits pass. Outside it x_f stays, by construction.

    Args:
        denoiser: the unpatched base.
        picture: x_f.
        mask: (H, W) in [0, 1], 1 where the base may draw.
        gate: what an edit must pass; its similarity to x_f is counted where the mask is.
        count: surrogates wanted.
        seed: of the noise.

    Raises:
        RecipeError: no edit passes.

    Source: RePaint, Lugmayr et al. 2022, arXiv:2201.09865.
    """
    x: Latents = denoiser.encode(picture[None])
    hole = F.interpolate(mask[None, None], size=x.shape[-2:], mode="area").to(x.device)
    empty = {k: v.expand(CANDIDATES, *v.shape[1:]) for k, v in denoiser.embed([""]).items()}
    for strength in STRENGTHS:
        eps = torch.randn((CANDIDATES, *x.shape[1:]), generator=torch.Generator().manual_seed(seed)).to(x.device)
        x_t = denoiser.noised(x, torch.full((CANDIDATES,), strength, device=x.device), eps)
        edits = denoiser.decode(denoiser.denoise(x_t, strength, empty, steps=STEPS, keep=(x, hole))).cpu()
        if int(gate.passes(edits).sum()) >= min(count, CANDIDATES // 4):
            break
    return gate.choose(
        edits,
        count,
        f"edits inside the mask from noise level {strength:.2f}",
        hint='draw a larger mask, or let the base edit the whole picture: surrogate.kind = "sdedit"',
    )
