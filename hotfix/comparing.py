"""Compare: two patches for one recipe, or two versions of one, on the same seeds."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hotfix import subject
from hotfix.case import Case, prepare
from hotfix.denoiser import Denoiser
from hotfix.intervals import Rate, interval
from hotfix.page import Gallery
from hotfix.paired import MustStay, Trial
from hotfix.partial import REPLAY, cycled
from hotfix.patch import Patch
from hotfix.recipe import Recipe
from hotfix.report import PatchRef
from hotfix.stack import Stack
from hotfix.together import Compared, Comparison

SHOWN = 10  # pictures in a row


@torch.no_grad()
def compare(
    pipe: Any,
    recipe: Recipe,
    a: Patch,
    b: Patch,
    *,
    seed: int = 0,
    n: int = 300,
    gallery: Gallery | None = None,
    stage: Callable[[str], None] = lambda words: None,
) -> Comparison:
    """Draw the same with one patch on and with the other.

    Args:
        pipe: a pipeline; whichever of the two is on is taken off meanwhile.
        recipe: what both are to suppress.
        a: one patch.
        b: the other.
        seed: same seed, same numbers.
        n: pictures drawn for every kind of caption; partial diffusion uses a quarter as many noises.
        gallery: filled with pictures without either, with the first and with the second, if given.
        stage: called with a few words at the beginning of every stage.

    Raises:
        HotfixError: the recipe or a patch does not fit the pipeline.
    """
    stacks = Stack.of(a), Stack.of(b)
    for stack in stacks:
        stack.check(pipe)
    with Stack(tuple({patch.id: patch for patch in (a, b)}.values())).off(pipe):
        stage("preparing the case")
        denoiser = Denoiser(pipe, recipe.base.call)
        case = prepare(recipe, denoiser)
        trial, must_stay = Trial(denoiser, case, seed, n), MustStay.of(denoiser, [case], seed)
        hits, drifts = [], []
        stage("without either")
        bare = trial.hits(Stack())
        for patch, stack in zip((a, b), stacks, strict=True):
            stage(f"with {patch.name} {patch.version}")
            hits.append(trial.hits(stack))
            drifts.append(must_stay.drift(stack))
        if gallery is not None:
            stage("drawing pictures to look at")
            case = subject.hidden(case, subject.held_out(recipe, denoiser, case))
            _show(denoiser, case, must_stay, stacks, seed, gallery)
    return Comparison(
        bare=Rate.among(bare),
        patches=[
            Compared(
                patch=PatchRef(name=patch.name, version=patch.version, id=patch.id),
                returned=Rate.among(hit),
                alone=int((hit & ~other).sum()),
                drift=float(drift.mean()),
                bytes=sum(entry.data.nbytes for entry in patch.entries.values()),
            )
            for patch, hit, other, drift in zip((a, b), hits, hits[::-1], drifts, strict=True)
        ],
        n=len(must_stay.bare),
        farther=interval((drifts[1] - drifts[0]).tolist()) if len(must_stay.bare) > 1 else None,
    )


def _show(
    denoiser: Denoiser, case: Case, must_stay: MustStay, stacks: Sequence[Stack], seed: int, gallery: Gallery
) -> None:
    """The first drawings of every kind of caption, and of what must stay: of those that were measured."""
    first = [seed + REPLAY + i for i in range(SHOWN)]
    kinds = {f"{kind} caption": (cycled(words, SHOWN), first) for kind, words in case.forget_kinds().items()}
    stay = list(must_stay.captions[:SHOWN]), list(must_stay.seeds[:SHOWN])
    for words, (captions, seeds) in (kinds | {"what must stay": stay}).items():
        rows = []
        for stack in (Stack(), *stacks):
            with stack.on(denoiser.pipe):
                rows.append(denoiser.draw(captions, seeds))
        gallery.add(words, rows, case.alike)
