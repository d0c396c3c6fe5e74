"""The gate that edits of x_f pass before one stands in for it; refusals are counted, without a picture or a file name.

An edit is taken when it is no longer x_f, when the base might have drawn it, and when it is among the nearest to x_f of
those: near edits ask least of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from hotfix import objective
from hotfix.denoiser import Denoiser
from hotfix.errors import RecipeError
from hotfix.shapes import PerExample, Picture, Pictures
from hotfix.similarity import Similarity

LEVELS = (0.2, 0.4, 0.6, 0.8)  # noise levels t of the error
REFERENCE = 64  # retain pictures that say how large it usually is: enough for a 95th percentile


@torch.no_grad()
def error(denoiser: Denoiser, pictures: Pictures, seed: int) -> PerExample:
    """How badly the base brings pictures back from noise: mean over t of a_t² ‖x_hat(x_t) - x‖², without a caption.

    Small where the base could have drawn the picture: the likelihood bound of diffusion models, with the weight of
    the ε-loss times s_t². Every picture meets the same noise. It sees noise, seams and colours of no picture; a blurred
    picture it takes for a likely one.

    Args:
        denoiser: the unpatched base.
        pictures: (B, 3, H, W) in [-1, 1].
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    noises = [torch.randn((1, *denoiser.latent_shape), generator=generator).to(denoiser.device) for _ in LEVELS]
    empty, errors = denoiser.embed([""]), []
    encoded = denoiser.encode(pictures)
    for x in (encoded[part] for part in denoiser.parts(len(encoded))):
        rows = {k: v.expand(len(x), *v.shape[1:]) for k, v in empty.items()}
        total = torch.zeros(len(x), device=x.device)
        for level, eps in zip(LEVELS, noises, strict=True):
            t = torch.full((len(x),), level, device=x.device)
            x_hat = denoiser.x_hat(denoiser.noised(x, t, eps), t, rows)
            total += objective.endpoint(x_hat, x, denoiser.schedule(t)[0].flatten().square()) / len(LEVELS)
        errors.append(total.cpu())
    return torch.cat(errors)


@dataclass(frozen=True)
class Chosen:
    """Surrogates, nearest first, and in words how many were taken and why the others were refused."""

    pictures: Pictures
    words: str


@dataclass(frozen=True)
class Gate:
    """What an edit of x_f must pass."""

    similarity: Similarity  # to x_f
    limit: float  # an edit is no longer x_f below this similarity
    error: Callable[[Pictures], PerExample] | None = None  # of pictures that the base may not have drawn
    most: float = float("inf")  # the base might have drawn an edit up to this error
    others: tuple[tuple[Similarity, float], ...] = ()  # to other forget pictures; from so alike on, an edit is that one

    @classmethod
    def of(
        cls,
        denoiser: Denoiser,
        picture: Picture,
        bank: Pictures,
        similarity: Similarity,
        limit: float,
        seed: int,
        others: tuple[tuple[Similarity, float], ...] = (),
    ) -> Self:
        """A gate on a base: the largest error is the 95th percentile of the retain pictures', or x_f's own.

        Args:
            denoiser: the unpatched base.
            picture: x_f.
            bank: retain pictures.
            similarity: to x_f.
            limit: an edit is no longer x_f below this similarity.
            seed: of the noise.
            others: similarity to every other forget picture, and from where on an edit is that one.
        """

        def of_base(pictures: Pictures) -> PerExample:
            return error(denoiser, pictures, seed)

        usual = of_base(bank[:: -(-len(bank) // REFERENCE)]).quantile(0.95)
        return cls(similarity, limit, of_base, max(float(usual), float(of_base(picture[None]))), others)

    def strangers(self, edits: Pictures) -> Tensor:
        """Which edits are no longer x_f, nor any other forget picture, (B,) bool."""
        strange = self.similarity(edits) < self.limit
        for similarity, tau in self.others:
            strange &= similarity(edits) < tau
        return strange

    def passes(self, edits: Pictures) -> Tensor:
        """Which edits are no forget picture and might be the base's, (B,) bool."""
        strange = self.strangers(edits)
        return strange & (self.error(edits) <= self.most) if self.error is not None else strange

    def choose(self, edits: Pictures, count: int, what: str, hint: str) -> Chosen:
        """The nearest edits that pass, at most `count` of them.

        Args:
            edits: (B, 3, H, W), at least one.
            count: surrogates wanted.
            what: the edits are called, and how they were made: "edits from noise level 0.62".
            hint: what to do where none passes.

        Raises:
            RecipeError: none passes; it says why, in numbers.
        """
        passes, strange = self.passes(edits), self.strangers(edits)
        alike = self.similarity(edits) >= self.limit
        near = edits[passes]
        taken = near[self.similarity(near).argsort(descending=True)][:count]
        reasons = {
            f"still too like the target (>= {self.limit:.3f})": int(alike.sum()),
            "another forget picture": int((~alike & ~strange).sum()),
            "unlike anything that the base draws": int((strange & ~passes).sum()),
            "farther from the target than those": len(near) - len(taken),
        }
        why = ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number)
        if not len(taken):
            raise RecipeError(f"none of {len(edits)} {what} can stand in for the forget picture: {why}", hint=hint)
        return Chosen(taken, f"{len(taken)} of {len(edits)} {what} taken{f'; {why}' if why else ''}")
