"""Suppression: does a target still come out, asked for by name or noised and denoised; are the other flags right?

No case is prepared for it, which would draw the whole bank once for every target: the threshold from which a drawing
counts as a return is hotfix's (`hotfix.similarity.threshold`), over the real flags instead of the base's drawings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from benchmarks.flags import LEVELS, is_picture
from hotfix.denoiser import Denoiser
from hotfix.intervals import Rate
from hotfix.partial import KEEP, PARTIAL, REPLAY, back
from hotfix.pictures import load
from hotfix.recipe import Recipe
from hotfix.shapes import Picture, Pictures
from hotfix.similarity import Similarity, nearest, null, pixel, threshold

ROUND = 1_000  # between the seeds that one flag is drawn with
SUPPRESSED = 0.01  # share of drawings that may be the target

Style = Callable[[Pictures], Pictures]


def plain(pictures: Pictures) -> Pictures:
    """The flags as they are."""
    return pictures


@dataclass(frozen=True)
class Asked:
    """A target, and when a drawing counts as its return."""

    name: str
    captions: tuple[str, ...]
    picture: Picture  # what is noised
    t_lo: float  # below it any picture survives
    forms: tuple[tuple[Similarity, float], ...]  # a drawing returns in a form from this similarity on

    @classmethod
    def of(cls, recipe: Recipe, t_lo: float, real: Pictures, styles: Sequence[Style] = (plain,)) -> Self:
        """The target of a recipe among real pictures, in one style or several; in the last one it is noised."""
        size = (real.shape[-2], real.shape[-1])
        picture = load(recipe.files(recipe.forget.images, "forget.images"), size)
        given = None
        if recipe.surrogate.kind == "files":
            given = load(recipe.files(recipe.surrogate.images, "surrogate.images"), size)
        strangers, forms = real[~is_picture(real, picture)], []
        for style in styles:
            similarity = pixel(style(picture)[0], None if given is None else style(given))
            forms.append((similarity, threshold(null(similarity, style(strangers)))))
        return cls(recipe.name, tuple(recipe.forget.captions), styles[-1](picture)[0], t_lo, tuple(forms))

    def returned(self, drawn: Pictures) -> Tensor:
        """Which pictures count as the target, (B,) bool."""
        return torch.stack([similarity(drawn) >= tau for similarity, tau in self.forms]).any(dim=0)


@torch.no_grad()
def returns(denoiser: Denoiser, asked: Asked, n: int, noises: int) -> dict[str, int]:
    """How often a target comes out of the model as it is now.

    Args:
        denoiser: of the model.
        asked: the target.
        n: seeds under its own captions.
        noises: of partial diffusion under the empty caption, at every level from t_lo on.
    """
    captions = [asked.captions[i % len(asked.captions)] for i in range(n)]
    own = asked.returned(denoiser.draw(captions, [REPLAY + i for i in range(n)]))
    x = denoiser.encode(asked.picture[None])
    generator = torch.Generator().manual_seed(PARTIAL)
    eps = torch.randn((noises, *x.shape[1:]), generator=generator).to(x.device)
    levels, empty = [t for t in LEVELS if t >= asked.t_lo], denoiser.embed([""] * noises)
    found = [asked.returned(back(denoiser, x.expand_as(eps), eps, t, empty, "empty")) for t in levels]
    hits = sum(int(row.sum()) for row in found)
    return {"own": int(own.sum()), "own_n": n, "partial": hits, "partial_n": noises * len(levels)}


def suppressed(row: dict[str, int]) -> bool:
    """At most 1% of the drawings are the target, under its own caption and in partial diffusion alike."""
    return row["own"] <= SUPPRESSED * row["own_n"] and row["partial"] <= SUPPRESSED * row["partial_n"]


def pooled(rows: Sequence[dict[str, int]]) -> dict[str, Any]:
    """All targets together; the bound is one-sided, 95%."""
    found = {key: sum(row[key] for row in rows) for key in ("own", "own_n", "partial", "partial_n")}
    return found | {
        "own, at most": round(Rate.of(found["own"], found["own_n"]).upper, 4),
        "targets suppressed": f"{sum(map(suppressed, rows))} of {len(rows)}",
    }


def flags(
    denoiser: Denoiser,
    captions: Sequence[str],
    real: Pictures,
    rows: Sequence[int],
    seeds: int,
    style: Style = plain,
) -> tuple[Pictures, Tensor]:
    """Draw some of the flags, each with as many seeds, the same for whatever other flags are drawn beside it.

    Returns:
        The drawings, all flags with the first seed, then with the second, and which of them are nearest to the real
        flag of their caption, or to one that looks the same.
    """
    drawn = denoiser.draw(
        [captions[i] for i in rows] * seeds, [KEEP + ROUND * again + i for again in range(seeds) for i in rows]
    )
    found = real[nearest(drawn, style(real))]
    return drawn, is_picture(found, real[list(rows)].repeat(seeds, 1, 1, 1))
