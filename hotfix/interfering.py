"""Interference: does each patch of a stack hold with the others on, and does the stack drift more than its parts?

A patch is tried alone, with what it requires, and with the whole stack, from the same seeds. Where more drawings are
its target with the others on than chance explains, each other patch is tried with it by itself, and named if it is
enough to weaken it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from hotfix.case import prepare
from hotfix.denoiser import Denoiser
from hotfix.errors import StackError
from hotfix.intervals import Rate
from hotfix.paired import MustStay, Trial
from hotfix.patch import Patch
from hotfix.recipe import Recipe
from hotfix.relations import with_required
from hotfix.report import PatchRef
from hotfix.stack import Stack
from hotfix.together import CHANCE, Held, Interference


def interference(
    pipe: Any,
    recipes: Sequence[Recipe],
    *,
    stack: Stack,
    seed: int = 0,
    n: int = 300,
    stage: Callable[[str], None] = lambda words: None,
) -> Interference:
    """Measure every patch of a stack alone and together with the others.

    Args:
        pipe: a pipeline; patches of `stack` that are on are taken off meanwhile.
        recipes: of the patches, by name; what has none is on, and not measured.
        stack: all of it.
        seed: same seed, same numbers.
        n: pictures drawn for every kind of caption; partial diffusion uses a quarter as many noises.
        stage: called with a few words at the beginning of every stage.

    Raises:
        StackError: fewer than two patches, a recipe whose patch is not in the stack, or recipes of different calls.
        HotfixError: a recipe or the stack does not fit the pipeline.
    """
    patches = {patch.name: patch for patch in stack.patches}
    strange = [recipe.name for recipe in recipes if recipe.name not in patches]
    if strange or len(patches) < 2:
        raise StackError(
            f"the stack holds {', '.join(patches) or 'nothing'}",
            wanted=f"{', '.join(strange)} in it" if strange else "two patches or more",
            hint="hotfix add PATCH",
        )
    for other in recipes[1:]:
        if other.base.call != recipes[0].base.call:  # what must stay is drawn once, for all of them
            raise StackError(
                f"{other.name} is measured with {other.base.call}",
                wanted=f"{recipes[0].base.call}, as of {recipes[0].name}",
                hint="score it alone, or give both recipes one base.call",
            )
    stack.check(pipe)
    with stack.off(pipe):
        denoiser = Denoiser(pipe, recipes[0].base.call)
        stage("preparing the cases")
        cases = {recipe.name: prepare(recipe, denoiser) for recipe in recipes}
        stage("drawing what must stay")
        must_stay = MustStay.of(denoiser, list(cases.values()), seed)
        whole = float(must_stay.drift(stack).mean())
        held = []
        for name, case in cases.items():
            stage(f"{name}, alone and with the others")
            trial = Trial(denoiser, case, seed, n)
            held.append(_held(trial, patches[name], stack, must_stay))
    return Interference(
        patches=held, unmeasured=[name for name in patches if name not in cases], drift=whole, n=len(must_stay.bare)
    )


def _held(trial: "Trial", patch: Patch, stack: Stack, must_stay: "MustStay") -> Held:
    alone = _part(stack, [patch])
    before, by_itself, together = map(trial.hits, (Stack(), alone, stack))
    chance = _chance(by_itself, together)
    by = []
    if chance < CHANCE:
        others = [other for other in stack.patches if other not in alone.patches]
        by = [o.name for o in others if _chance(by_itself, trial.hits(_part(stack, [patch, o]))) < CHANCE]
    rates = [Rate.among(hits) for hits in (before, by_itself, together)]
    return Held(
        patch=PatchRef(name=patch.name, version=patch.version, id=patch.id),
        bare=rates[0],
        alone=rates[1],
        together=rates[2],
        chance=chance,
        drift=float(must_stay.drift(alone).mean()),
        weakened_by=by,
    )


def _part(stack: Stack, patches: Sequence[Patch]) -> Stack:
    """Some patches of a stack and what they require, in its order."""
    listed = [patch.manifest for patch in stack.patches]
    names = {name for patch in patches for name in with_required(patch.manifest, listed)}
    return Stack(tuple(patch for patch in stack.patches if patch.name in names))


def _chance(before: Tensor, after: Tensor) -> float:
    """Of at least so many drawings that are the target only afterwards, were both equally likely (McNemar, exact)."""
    new, gone = int((after & ~before).sum()), int((before & ~after).sum())
    if not new:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(new, new + gone, alternative="greater").pvalue)
