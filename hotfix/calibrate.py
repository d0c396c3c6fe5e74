r"""The timestep window m(t), measured for one model and one target instead of guessed.

    S_f(t) = mean similarity of the base's endpoint x_hat(x_t) to x_f, for x_t noised from x_f
    N(t)   = 95th percentile of the same for x_t noised from retain pictures x_r
    m(t)   = clip((S_f - N) / (max S_f - N), 0, 1)

m is 0 where x_f cannot yet be told from other pictures (composition is being decided: hands off), and below t_lo, where
any denoiser brings back any picture. It depends on the caption: under its own caption the base heads for x_f even from
pure noise, under the empty one it cannot.
"""

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
FLOOR = 1e-3  # no window is empty; more would drag towards x_s where the base turns away from x_f by itself


@dataclass(frozen=True)
class Window:
    """m(t) for every kind of caption, on the grid."""

    t: Tensor  # (GRID,)
    m: Mapping[str, Tensor]  # kind of caption -> (GRID,), in [0, 1]
    t_lo: float

    def at(self, kind: str, t: Tensor) -> Tensor:
        """m at noise levels (n,)."""
        return self.m[kind][(t * GRID).ceil().long().clamp(1, GRID) - 1]

    def sample(self, kind: str, n: int, generator: torch.Generator) -> Tensor:
        """Noise levels (n,), drawn in proportion to m(t) + FLOOR above t_lo, spread evenly inside a grid cell."""
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
    x_r: Latents,
    conditions: Mapping[str, Mapping[str, Tensor]],
    retain_rows: Mapping[str, Tensor],
    similarity: Similarity,
    t_lo: float,
    seed: int,
) -> Window:
    """Measure m(t) under every kind of caption.

    Args:
        denoiser: the unpatched base.
        x_f: one forget latent, (1, C, H, W).
        x_r: retain latents, (R, C, H, W); 2 * NOISES of them are used.
        conditions: kind of caption -> condition rows; NOISES of them are drawn.
        retain_rows: the condition of every x_r. Under "own" the retain pictures keep theirs: with the forget caption
            the base would head for x_f from there too, and the window would shut where it is needed most.
        similarity: to the forget picture, of decoded pictures.
        t_lo: below this level m is 0.
        seed: of the noise and of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    levels = torch.arange(1, GRID + 1) / GRID
    pick = torch.randint(len(x_r), (2 * NOISES,), generator=generator)
    x = torch.cat([x_f.expand(NOISES, -1, -1, -1), x_r[pick.to(x_r.device)]])
    m = {}
    for kind, condition in conditions.items():
        excess, best = [], 0.0
        for level in levels:
            t = level.expand(len(x)).to(x.device)
            rows, _ = sample(condition, len(x), generator)
            if kind == "own":
                rows = {k: torch.cat([v[:NOISES], retain_rows[k][pick.to(v.device)]]) for k, v in rows.items()}
            eps = torch.randn(x.shape, generator=generator).to(x.device)
            clean = denoiser.denoise(denoiser.noised(x, t, eps), float(level), rows, steps=1)
            like = similarity(denoiser.decode(clean).cpu())
            found, usual = float(like[:NOISES].mean()), float(like[NOISES:].quantile(0.95))
            excess.append((found, usual))
            best = max(best, found)
        m[kind] = torch.tensor([max(0.0, min(1.0, (s - n) / max(best - n, 1e-6))) for s, n in excess]) * (
            levels >= t_lo
        )
    return Window(levels, m, t_lo)
