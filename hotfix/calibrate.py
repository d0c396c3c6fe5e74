r"""The timestep window m(t), measured for one model and one target instead of guessed.

    m(t) = share of what the base draws from x_t that is more like x_f than a stranger, for x_t noised from x_f

Drawn in a few steps, not read off one endpoint: at high noise an endpoint is the mean of all that may still come, and
like nothing, where a drawing may well come back to x_f. m is 0 where x_f cannot be told from other pictures any more,
and below t_lo, where any denoiser brings back any picture. It depends on the caption: under its own the base heads for
x_f even from pure noise, under the empty one it cannot.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hotfix import weight as curves
from hotfix.denoiser import Denoiser, sample
from hotfix.recipe import WeightKind
from hotfix.shapes import Latents, Picture
from hotfix.similarity import Similarity, stranger

GRID = 20  # noise levels t = 1/20, 2/20, …, 1
NOISES = 8
STEPS = 4  # from pure noise; fewer from lower levels
FLOOR = 1e-3  # no window is empty; more would drag towards x_s where the base turns away from x_f by itself


@dataclass(frozen=True)
class Window:
    """m(t) for every kind of caption, on the grid."""

    t: Tensor  # (GRID,)
    m: Mapping[str, Tensor]  # kind of caption -> (GRID,), in [0, 1]
    t_lo: float

    def sample(self, kind: str, n: int, generator: torch.Generator) -> Tensor:
        """Noise levels (n,), evenly from grid cells, which are drawn in proportion to m(t) + FLOOR from t_lo on.

        A cell lies below its grid level, so the lowest reaches 1/GRID below t_lo.
        """
        weight = (self.m[kind] + FLOOR) * (self.t >= self.t_lo)
        cell = torch.multinomial(weight, n, replacement=True, generator=generator)
        return (self.t[cell] - torch.rand(n, generator=generator) / GRID).clamp(min=1 / (2 * GRID))


def chosen(
    denoiser: Denoiser, kinds: Iterable[str], weight: WeightKind, window: tuple[float, float], t_lo: float
) -> Window:
    """A curve from the literature instead of a measured one, the same for every kind of caption.

    Args:
        denoiser: whose schedule says what t means.
        kinds: of captions.
        weight: the curve's name in a recipe.
        window: low and high noise level of the two that have edges.
        t_lo: below this level nothing is trained.
    """
    t = torch.arange(1, GRID + 1) / GRID
    a_t, s_t = (scale.flatten() for scale in denoiser.schedule(t))
    match weight:
        case "fixed":
            m = curves.fixed(t, *window)
        case "soft":
            m = curves.soft(t, *window)
        case "min-snr":
            m = curves.min_snr(a_t, s_t) / denoiser.weight(t)
        case "p2":
            m = curves.p2(a_t, s_t) / denoiser.weight(t)
        case _:
            m = torch.ones_like(t)
    m = m / m.max().clamp_min(1e-12) * (t >= t_lo)
    return Window(t, dict.fromkeys(kinds, m), t_lo)


@torch.no_grad()
def find_t_lo(denoiser: Denoiser, picture: Picture, similarity_to: Similarity, tau: float, seed: int) -> float:
    """The smallest grid level at which the base no longer brings back a picture it never saw.

    Args:
        denoiser: the unpatched base.
        picture: x_f; its stranger is what is noised.
        similarity_to: similarity to that stranger.
        tau: from this similarity on, a picture counts as brought back.
        seed: of the noise.
    """
    x = denoiser.encode(stranger(picture)[None]).expand(NOISES, -1, -1, -1)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device)
    empty = {k: v.expand(NOISES, *v.shape[1:]) for k, v in denoiser.embed([""]).items()}
    for level in range(1, GRID + 1):
        t = torch.full((NOISES,), level / GRID, device=x.device)
        back = denoiser.decode(denoiser.denoise(denoiser.noised(x, t, eps), level / GRID, empty, steps=1))
        if float(similarity_to(back.cpu()).mean()) < tau:
            return level / GRID
    return 1.0


@torch.no_grad()
def calibrate(
    denoiser: Denoiser,
    x_f: Latents,
    conditions: Mapping[str, Mapping[str, Tensor]],
    similarity: Similarity,
    null: float,
    t_lo: float,
    seed: int,
) -> Window:
    """Measure m(t) under every kind of caption.

    Args:
        denoiser: of the unpatched base.
        x_f: one forget latent, (1, C, H, W).
        conditions: kind of caption -> condition rows; NOISES of them are drawn for every level.
        similarity: to the forget picture, of decoded pictures.
        null: as similar as a stranger.
        t_lo: below this level m is 0.
        seed: of the noise and of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    levels = torch.arange(1, GRID + 1) / GRID
    x = x_f.expand(NOISES, -1, -1, -1)
    m = {}
    for kind, condition in conditions.items():
        shares = []
        for level in levels:
            rows, _ = sample(condition, NOISES, generator)
            eps = torch.randn(x.shape, generator=generator).to(x.device)
            x_t = denoiser.noised(x, level.expand(NOISES).to(x.device), eps)
            clean = denoiser.denoise(x_t, float(level), rows, steps=math.ceil(STEPS * level))
            shares.append(float((similarity(denoiser.decode(clean).cpu()) > null).float().mean()))
        m[kind] = torch.tensor(shares) * (levels >= t_lo)
    return Window(levels, m, t_lo)
