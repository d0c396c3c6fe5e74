"""How alike two pictures are, and from when on one counts as the other."""

from typing import Protocol

import torch
from torch import Tensor

from hotfix.shapes import PerExample, Picture, Pictures

ALIKE = 0.85  # by pixels: a picture that is so much like the other is no stranger to it
UNDETECTED = -1.0  # the lowest there is: where a network found nothing in a picture that it could compare


class Similarity(Protocol):
    """Similarity of pictures (B, 3, H, W) in [-1, 1] to one known picture: (B,), 1 for the same, lower for less."""

    def __call__(self, pictures: Pictures) -> PerExample:
        """Similarity of each picture."""
        ...


def pixel(target: Picture, surrogates: Pictures | None = None) -> Similarity:
    """1 - RMSE of the pixels in [0, 1], counted where the target and its surrogates differ.

    Elsewhere target and surrogate are the same on purpose, and agreeing there says nothing about which one came out.
    Without surrogates every pixel counts alike.

    Args:
        target: the picture to compare with.
        surrogates: what should come instead, (K, 3, H, W).
    """
    w = torch.ones(target.shape[-2:])
    if surrogates is not None:
        w = (surrogates - target).abs().mean(dim=(0, 1))
    return inside(target, w)


def inside(target: Picture, w: Tensor) -> Similarity:
    """1 - RMSE of the pixels in [0, 1], each counted by a weight (H, W) ≥ 0 that is not zero everywhere."""
    w = w / w.sum()

    def similarity(pictures: Pictures) -> PerExample:
        error = (pictures - target).square().mean(dim=-3)
        return 1 - (error * w).sum(dim=(-2, -1)).sqrt() / 2

    return similarity


def null(similarity: Similarity, strangers: Pictures) -> float:
    """As similar as a stranger: the 99th percentile of the similarity of unrelated pictures."""
    return float(similarity(strangers).quantile(0.99))


def threshold(null: float) -> float:
    """From here on a picture counts as the target: half-way between the most similar strangers and identity."""
    return (1 + null) / 2


def stranger(picture: Picture) -> Picture:
    """A picture that no model was trained on, with the same edges, contrast and colours' values as `picture`.

    Turned by 180 degrees and with the colour channels exchanged; of a picture that looks the same so (a grey disc), the
    least similar of its negative and its halves exchanged, either way. How well the *base* brings it back from
    noise level t says how much of any picture survives that noise, memory aside.
    """
    turned = picture.flip(-1, -2)[[1, 2, 0]]
    others = torch.stack([turned, -picture, *(picture.roll(picture.shape[way] // 2, way) for way in (-1, -2))])
    like = pixel(picture)(others)
    return turned if like[0] < ALIKE else others[int(like.argmin())]


def nearest(drawn: Pictures, known: Pictures) -> Tensor:
    """Index of the known picture nearest to each drawn one, by pixel distance, (B,)."""
    return torch.cdist(drawn.flatten(1), known.flatten(1)).argmin(dim=1)
