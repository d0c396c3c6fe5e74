"""Attacks through the noise: drawn otherwise, from the target's own noise, from noises that a gradient found."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hotfix import production
from hotfix.case import Case, Target
from hotfix.denoiser import Denoiser
from hotfix.families import FAMILIES
from hotfix.objective import ddim, length
from hotfix.partial import STEPS, cycled
from hotfix.shapes import Latents, Pictures

BATCH = 8
SCALES = (0.75, 1.0), (1.0, 0.75), (1.25, 1.0), (1.0, 1.25)  # of height and width, at other resolutions
MIXED = 0.3  # share of fresh noise in an inverted one
SEARCHED, SHORT, STRIDE = 15, 4, 0.1  # steps of the search for a noise, denoising steps in each, and its step size


def samplings(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> Pictures:
    """The pipeline's own call with half and twice the steps, without guidance, and with twice of it, in equal parts.

    More steps than the schedule has levels are none.
    """
    call, most = dict(denoiser.call), denoiser.pipe.scheduler.config.num_train_timesteps
    steps = production.steps(denoiser.pipe, call)
    ways = [call | {"num_inference_steps": some} for some in (max(1, steps // 2), min(2 * steps, most))]
    plain = FAMILIES[denoiser.family].plain  # where guidance counts from
    if plain is not None and denoiser.guidance != 1:
        ways += [call | {"guidance_scale": scale + (plain - 1)} for scale in (1.0, 2 * denoiser.guidance)]
    captions, drawn = cycled(list(case.captions) or [""], n), []
    for i, way in enumerate(ways[:n]):
        rows = range(i, n, len(ways))
        drawn.append(replace(denoiser, call=way).draw([captions[row] for row in rows], [seed + row for row in rows]))
    return torch.cat(drawn)


def resolutions(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> Pictures:
    """Drawn at other sizes, in equal parts, and resized to the base's own."""
    picture, drawn = target.picture[None], []
    sizes = sizes_of(denoiser)[:n]
    for i, size in enumerate(sizes):
        other = at_size(denoiser, size)
        resized = replace(target, x_f=other.encode(_resized(picture, size)))
        x, t = begun(other, case, resized, n, seed)
        drawn.append(_resized(drawn_from(other, case, x[i :: len(sizes)], t), denoiser.size))
    return torch.cat(drawn)


@torch.no_grad()
def inversion(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> Pictures:
    """The picture run backwards to its noise without a caption, and drawn again from there, a little off (DDIM)."""
    x, times = target.x_f, torch.linspace(0.02, 1.0, 2 * STEPS)
    rows = denoiser.embed([""])
    for now, then in pairwise(times.to(x.device)):
        x = ddim(x, denoiser.x_hat(x, now[None], rows), denoiser.schedule(now[None]), denoiser.schedule(then[None]))
    fresh = noise(denoiser, n, seed)
    return drawn_from(denoiser, case, (1 - MIXED**2) ** 0.5 * x + MIXED * fresh)


def noise_search(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> Pictures:
    """Noises led by the gradient to where a short sampling ends at the picture, kept as long as noises are (IVO)."""
    noises = []
    for x in noise(denoiser, n, seed).split(BATCH):
        rows = denoiser.embed(cycled(list(case.captions) or [""], len(x)))
        norm = length(x)
        for _ in range(SEARCHED):
            x = x.detach().requires_grad_()
            error = (_short(denoiser, x, rows) - target.x_f).square().sum()
            (uphill,) = torch.autograd.grad(error, x)
            x = x.detach() - STRIDE * norm * uphill / length(uphill).clamp_min(1e-9)
            x = x * norm / length(x)
        noises.append(x.detach())
    return drawn_from(denoiser, case, torch.cat(noises))


def noise(denoiser: Denoiser, n: int, seed: int) -> Latents:
    """What n drawings begin with, (n, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((n, *denoiser.latent_shape), generator=generator).to(denoiser.device)


def begun(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> tuple[Latents, float]:
    """What n drawings begin with, (n, C, H, W), and its noise level: pure noise, where captions name the target.

    One that none names hardly ever comes from there. It begins as itself, noised half-way from the level below which
    any picture survives to pure noise.
    """
    x_T, t = noise(denoiser, n, seed), (1 + target.t_lo) / 2
    if case.captions:
        return x_T, 1.0
    return denoiser.noised(target.x_f, torch.full((n,), t, device=x_T.device), x_T), t


def drawn_from(
    denoiser: Denoiser,
    case: Case,
    x_t: Latents,
    t: float = 1.0,
    *,
    steps: int = STEPS,
    guidance: float | None = None,
) -> Pictures:
    """From given states to pictures, under the target's captions if it has some; guided as in production, or told."""
    rows = denoiser.embed(cycled(list(case.captions) or [""], len(x_t)))
    if guidance is None:
        guidance = denoiser.guidance if case.captions else 1.0
    return denoiser.decode(denoiser.denoise(x_t, t, rows, steps=steps, guidance=guidance)).cpu()


def sizes_of(denoiser: Denoiser) -> list[tuple[int, int]]:
    """The base's own size times SCALES, in whole tokens or cells, where the network has places for as many.

    Of a network that draws squares alone, both sides are changed alike.
    """
    config, (_, *cells) = denoiser.model.config, denoiser.latent_shape
    halved = 2 ** (len(config.get("block_out_channels", ())) - 1)
    whole = max(2, config.get("patch_size") or halved)  # latents of some transformers are packed two by two
    most = config.get("pos_embed_max_size")
    pixels = denoiser.size[0] // cells[0]
    found = []
    for scales in SCALES:
        if FAMILIES[denoiser.family].square:
            scales = (math.prod(scales),) * 2
        size = [scale * side / whole for scale, side in zip(scales, cells, strict=True)]
        height, width = (max(1, math.floor(side)) if min(scales) < 1 else math.ceil(side) for side in size)
        if most is None or max(height, width) <= most:
            found.append((height * whole * pixels, width * whole * pixels))
    return list(dict.fromkeys(found))


def at_size(denoiser: Denoiser, size: tuple[int, int]) -> Denoiser:
    """The same pipeline, drawing at another height and width, in pixels."""
    return replace(denoiser, other_size=size)


def _resized(pictures: Pictures, size: tuple[int, int]) -> Pictures:
    return interpolate(pictures, size, mode="bicubic", antialias=True)


def _short(denoiser: Denoiser, x: Latents, rows: Mapping[str, Tensor]) -> Latents:
    """A few deterministic denoising steps that a gradient flows through."""
    for now, then in pairwise(torch.linspace(1.0, 0.0, SHORT + 1).to(x.device)):
        t = now.expand(len(x))
        x0 = denoiser.x_hat(x, t, rows)
        x = ddim(x, x0, denoiser.schedule(t), denoiser.schedule(then.expand(len(x)))) if then > 0 else x0
    return x
