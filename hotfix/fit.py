"""Fit: whether a patch and the weights it meets belong together, whichever program holds them."""

from collections.abc import Mapping

from hotfix.errors import BaseMismatch
from hotfix.patch import A, B, Patch
from hotfix.sketch import RELATED, SAME


def misfit(
    patch: Patch, shapes: Mapping[str, tuple[int, ...]], apart: float, allow_related: bool = False
) -> BaseMismatch | None:
    """Why a patch cannot act on these weights, or None.

    Args:
        patch: any.
        shapes: of the weight of every layer in `patch.layers`.
        apart: distance of the weights' sketch to the one that the patch states.
        allow_related: whether weights will do that are like those the patch was made for, but not the same.
    """
    base = patch.manifest.base
    me, hint = f"{patch.name} {patch.version}", f"it was made for {base.repo}"
    for layer in patch.layers:
        delta = (patch.entries[layer + B].shape[0], *patch.entries[layer + A].shape[1:])
        if shapes[layer] != delta:
            return BaseMismatch(f"{me} holds a change of shape {delta} for a weight of {shapes[layer]}", hint=hint)
    if apart <= (RELATED if allow_related else SAME):
        return None
    hint = "load the base that the patch names, or build the patch again for this one"
    if apart <= RELATED:
        hint = f"{hint}; `hotfix apply --allow-related-base` and `Stack.apply` take it as it is, unmeasured"
    kind = "are like those, but differ" if apart <= RELATED else "are others"
    return BaseMismatch(f"{me} was made for {base.repo}; these weights {kind} (sketch {apart:.3f} > {SAME})", hint=hint)
