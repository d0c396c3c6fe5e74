"""Subject: one target on one base with one seed, ready to be trained on, and what has to be drawn to judge it.

The same calls, seeds and noises before and after a change. Thresholds, surrogates and the bank are those that
`hotfix.case.prepare` gives for the target's default recipe; every method, and every ablation, is judged by them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.flags import is_picture
from benchmarks.forgetting import targets
from benchmarks.forgetting.targets import Base, Target
from hotfix import objective
from hotfix.case import Case, prepare
from hotfix.denoiser import Denoiser
from hotfix.partial import KEEP, LEVELS, PARTIAL, REPLAY, back, cycled
from hotfix.pipeline import load_pipeline
from hotfix.recipe import Recipe
from hotfix.shapes import Pictures

STRIDE = 1_000_000  # between the seeds of two runs; far from those of training
BY_SEED = "the seed that drew it"

Draw = Callable[[tuple[str, ...], tuple[int, ...]], Pictures]


@dataclass(frozen=True)
class Sizes:
    """How much is drawn. Files with other sizes are not mixed."""

    n: int = 100  # seeds, under every kind of caption
    noises: int = 64  # of partial diffusion, at every level
    kept: int = 0  # other captions, one seed each; 0 is all of them
    steps: int = 0  # most steps that anything is trained; 0 sets no limit


class Model:
    """A base, loaded once, and what it draws unchanged, remembered for as long as the process runs."""

    def __init__(self, base: Base, denoiser: Denoiser) -> None:
        self.base, self.denoiser = base, denoiser
        self.remembered: Draw = lru_cache(maxsize=64)(denoiser.draw)
        self.real = targets.real(base, denoiser)

    @classmethod
    def load(cls, base: Base, device: str = "cpu") -> "Model":
        return cls(base, Denoiser(load_pipeline(base.pipeline).to(device), base.call))


@dataclass(frozen=True)
class Subject:
    model: Model
    target: Target
    seed: int
    recipe: Recipe
    case: Case

    @classmethod
    def of(cls, model: Model, target: Target, seed: int, sizes: Sizes, folder: Path) -> "Subject":
        """Prepare a target.

        Raises:
            HotfixError: its picture cannot be used on this base.
        """
        train = {"steps": sizes.steps} if sizes.steps else {}
        recipe = targets.recipe(target, model.base, model.denoiser, seed, folder, train)
        return cls(model, target, seed, recipe, prepare(recipe, model.denoiser))

    @property
    def known(self) -> tuple[list[str], Pictures]:
        """Names and pictures of everything real: the data set, or failing that the bank; and given surrogates."""
        names, pictures = self.model.real or (["" for _ in self.case.retain], self.case.retain)
        if self.recipe.surrogate.kind == "files":
            given = self.case.targets[0].surrogates
            names, pictures = [*names, *[""] * len(given)], torch.cat([pictures, given])
        return names, pictures

    @property
    def others(self) -> Pictures:
        """Everything real that is not the target."""
        pictures = self.known[1]
        return pictures[~is_picture(pictures, self.case.targets[0].picture)]

    def replays(self, n: int) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        """Kind of caption -> captions and seeds to draw."""
        seeds = self._seeds(REPLAY, n)
        calls = {kind: (tuple(cycled(captions, n)), seeds) for kind, captions in self.case.caption_kinds().items()}
        if self.target.seed is not None:
            calls[BY_SEED] = (("",), (self.target.seed,))
        return calls

    def kept(self, most: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Other captions, evenly thinned to `most`, each with a seed; nothing for a model without captions."""
        captions = [caption for caption in dict.fromkeys(self.case.retain_captions) if caption]
        if most:
            captions = captions[:: max(1, len(captions) // most)][:most]
        return tuple(captions), self._seeds(KEEP, len(captions))

    def levels(self) -> list[float]:
        """Noise levels of partial diffusion, from t_lo on."""
        return [level for level in LEVELS if level >= self.case.targets[0].t_lo]

    def _seeds(self, first: int, n: int) -> tuple[int, ...]:
        return tuple(range(self.seed * STRIDE + first, self.seed * STRIDE + first + n))

    @torch.no_grad()
    def back(self, kind: str, t: float, noises: int) -> Pictures:
        """The target noised to level t and denoised again, under captions of a kind."""
        denoiser, x_f, eps = self.model.denoiser, self.case.targets[0].x_f, self._noise(noises)
        rows = denoiser.embed(cycled(self.case.caption_kinds()[kind], noises))
        return back(denoiser, x_f.expand_as(eps), eps, t, rows, kind)

    @torch.no_grad()
    def left_out(self, t: float, noises: int) -> float:
        """The 95th percentile of the similarity of what an exact model of all real pictures but the target would draw.

        From the same states, by the posterior that `hotfix.objective.left_out` describes.
        """
        denoiser, target, eps = self.model.denoiser, self.case.targets[0], self._noise(noises)
        level = torch.full((noises,), t, device=eps.device)
        x_t, others = denoiser.noised(target.x_f.expand_as(eps), level, eps), self.others
        odds = objective.posterior(x_t, denoiser.encode(others), *denoiser.schedule(level)).cpu()
        return objective.left_out(odds, target.similarity(others))

    def _noise(self, noises: int) -> Tensor:
        x_f, generator = self.case.targets[0].x_f, torch.Generator().manual_seed(self.seed * STRIDE + PARTIAL)
        return torch.randn((noises, *x_f.shape[1:]), generator=generator).to(x_f.device)
