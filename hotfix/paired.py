"""Paired drawings: the same seeds under any stack, of what must not come out and of what must stay."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from hotfix.case import Case
from hotfix.denoiser import Denoiser
from hotfix.errors import HotfixError
from hotfix.partial import KEEP, LEVELS, NOISES_SHARE, PARTIAL, REPLAY, back, cycled, in_turn
from hotfix.shapes import PerExample, Pictures
from hotfix.stack import Stack


@dataclass(frozen=True)
class Trial:
    """The same drawings of one case, whatever is on."""

    denoiser: Denoiser
    case: Case
    seed: int
    n: int

    @torch.no_grad()
    def hits(self, stack: Stack) -> Tensor:
        """Which drawings are a target: replays, then partial diffusion at every level from t_lo on; (N,) bool."""
        with stack.on(self.denoiser.pipe):
            kinds = enumerate(self.case.forget_kinds().items())
            return torch.cat(
                [
                    part
                    for turn, (kind, captions) in kinds
                    for part in (self._replayed(turn, captions), *self._brought_back(turn, kind, captions))
                ]
            )

    def _replayed(self, turn: int, captions: Sequence[str]) -> Tensor:
        first = self.seed + REPLAY + turn * self.n
        return self.case.returned(self.denoiser.draw(cycled(captions, self.n), range(first, first + self.n)))

    def _brought_back(self, turn: int, kind: str, captions: Sequence[str]) -> Iterator[Tensor]:
        """Noises of its own at every level: one noise that returns at several would count as several."""
        targets = self.case.targets
        noises = max(2, self.n // NOISES_SHARE, len(targets))
        for place, t in enumerate(LEVELS):
            if t >= max(target.t_lo for target in targets):
                seed = self.seed + PARTIAL + turn * len(LEVELS) + place
                of, x_f, eps = in_turn(targets, noises, seed)
                rows = self.denoiser.embed(cycled(captions, noises, len(targets)))
                drawn = back(self.denoiser, x_f, eps, t, rows, kind)
                yield torch.stack([target.returned(drawn) for target in targets])[of, torch.arange(noises)]


@dataclass(frozen=True)
class MustStay:
    """What no patch of the stack is about, as the bare base draws it."""

    denoiser: Denoiser
    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    bare: Pictures

    @classmethod
    def of(cls, denoiser: Denoiser, cases: Sequence[Case], seed: int) -> Self:
        """Everything that the cases retain, but for what any of them forgets; few captions are drawn several times.

        Raises:
            HotfixError: that leaves nothing.
        """
        captions = sorted({caption for case in cases for caption in case.retain_captions if caption})
        forgotten = {caption for case in cases for caption in case.captions if case.scope == "any"}
        captions = [caption for caption in captions if caption not in forgotten] or [""]
        captions = cycled(captions, max(len(captions), len(cases[0].retain_captions)))
        seeds = [seed + KEEP + i for i in range(len(captions))]
        bare = denoiser.draw(captions, seeds)
        kept = ~torch.stack([case.returned(bare) for case in cases]).any(dim=0)
        rows = kept.nonzero().flatten().tolist()
        if not rows:
            raise HotfixError(
                f"all {len(captions)} drawings of what must stay are the target, or too much like it",
                hint="name in retain.prompts what draws something else",
            )
        return cls(denoiser, tuple(captions[i] for i in rows), tuple(seeds[i] for i in rows), bare[kept])

    def drift(self, stack: Stack) -> PerExample:
        """How far each picture moves with a stack on: RMSE in [0, 1]."""
        with stack.on(self.denoiser.pipe):
            drawn = self.denoiser.draw(self.captions, self.seeds)
        return (drawn - self.bare).square().mean(dim=(1, 2, 3)).sqrt() / 2
