"""What the node does that needs no ComfyUI: find the layers of a stack among a model's weights, and check them.

Where ComfyUI keeps a layer is a `Place`, in its own words: a key, or a tuple of a key, the (dimension, start, length)
of a part of that weight, and a function that it puts the change through. Rows are what `ModelPatcher.get_key_patches`
gives: for every key [(weight, converter), change, …], a change being (strength, what, strength of the weight, …).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hotfix import relations
from hotfix.errors import BaseMismatch, HotfixError, StackError, joined
from hotfix.fit import misfit
from hotfix.fold import LEAST_SURVIVAL, delta, survival
from hotfix.patch import A, B, Patch
from hotfix.sketch import SAME, distance, sketch

Place = str | tuple
Rows = Mapping[str, Sequence[tuple]]
MARK = "hotfix_patch"  # the attribute of a change that says which patch it is of


class Placed(NamedTuple):
    """A patch, where its layers are, and how far the weights there are from those that it was made for."""

    patch: Patch
    places: dict[str, Place]
    apart: float


def place_all(
    stack: Sequence[Patch], known: Mapping[str, Place], rows: Rows, on: Mapping[str, Patch], allow_related: bool = False
) -> list[Placed]:
    """Find and check every layer of every patch.

    Args:
        stack: what is to be on.
        known: LoRA layer names and their places, from `comfy.lora.model_lora_keys_unet`.
        rows: of the model.
        on: patches that are on it already, by id.
        allow_related: whether weights will do that are only like those that the patches were made for.

    Raises:
        HotfixError: one, that names every problem.
    """
    listed = {patch.id for patch in stack}
    together = [patch for id_, patch in on.items() if id_ not in listed] + [*stack]
    problems: list[HotfixError] = [*relations.problems([patch.manifest for patch in together])]
    found = []
    for patch in stack:
        try:
            places = place(patch, known, rows)
            found.append(Placed(patch, places, _checked(patch, places, rows, allow_related)))
        except HotfixError as error:
            problems.append(error)
    if problems:
        raise joined(problems, BaseMismatch if all(isinstance(one, BaseMismatch) for one in problems) else StackError)
    return found


def place(patch: Patch, known: Mapping[str, Place], rows: Rows) -> dict[str, Place]:
    """Where ComfyUI keeps each layer of a patch.

    Raises:
        BaseMismatch: it has not all of them; the message names those missing.
    """
    found = {layer: at for layer in patch.layers if (at := find(layer, known, rows)) is not None}
    if missing := [layer for layer in patch.layers if layer not in found]:
        names = ", ".join(missing[:8]) + (" …" if len(missing) > 8 else "")
        raise BaseMismatch(
            f"this model lacks {len(missing)} of the {len(patch.layers)} layers of {patch.name} {patch.version}: "
            f"{names}",
            hint=f"it was made for {patch.manifest.base.repo}",
        )
    return found


def find(layer: str, known: Mapping[str, Place], rows: Rows) -> Place | None:
    """Where ComfyUI keeps a layer, or None.

    It knows no PEFT names of a U-Net's attention, and would leave those layers out; but it knows the kohya names, which
    are the same words.
    """
    at = known.get(layer, known.get(f"lora_{layer.replace('.', '_')}"))
    return at if at is not None and split(at)[0] in rows else None


def carried(changes: Rows) -> dict[str, Patch]:
    """The patches, by id, that a model has on: read from its `ModelPatcher.patches`, never from memory.

    Raises:
        StackError: some layers of one are missing, or another node has weighed them.
    """
    found: dict[str, Patch] = {}
    whole: Counter[str] = Counter()
    for rows in changes.values():
        for strength, what, *_ in rows:
            if (patch := getattr(what, MARK, None)) is not None:
                found[patch.id] = patch
                whole[patch.id] += strength == 1.0
    for id_, patch in found.items():
        if whole[id_] != len(patch.layers):
            raise StackError(
                f"{whole[id_]} of the {len(patch.layers)} layers of {patch.name} {patch.version} are on as they should",
                hint="a node between two hotfix nodes has changed that; leave it or the first of them out",
            )
    return found


def describe(stack: Sequence[Placed]) -> str:
    """What is on, a line for each patch."""
    lines = [
        f"{patch.name} {patch.version} is on: {len(places)} layers, {patch.id[:19]}…"
        + (f"; unmeasured, the weights are only like those it was made for ({apart:.3f})" if apart > SAME else "")
        for patch, places, apart in stack
    ]
    return "\n".join(lines) or "no patches in the lock"


def weight_at(rows: Rows, at: Place) -> Tensor:
    """The weight of a layer as diffusers has it, in float32, before any change."""
    weight, convert = rows[split(at)[0]][0]
    return part_of(convert(weight.detach().to(torch.float32, copy=True), inplace=True), at)


def part_of(weight: Tensor, at: Place) -> Tensor:
    """What of a weight a place means, as diffusers has it."""
    _, part, function = split(at)
    weight = weight.narrow(*part) if part is not None else weight
    return function(weight) if function is not None else weight  # they swap halves: what leads there leads back


def split(at: Place) -> tuple[str, tuple[int, int, int] | None, Any]:
    """Key, part and function of a place."""
    key, part, function = (at, None, None) if isinstance(at, str) else (*at, None)[:3]
    return key, part, function


def _checked(patch: Patch, places: Mapping[str, Place], rows: Rows, allow_related: bool) -> float:
    """How far the weights are from those of the patch, if it may go on."""
    me, prefix = f"{patch.name} {patch.version}", f"{patch.manifest.base.component}."
    keys = {split(at)[0] for at in places.values()}
    if any(isinstance(what, list) or kept != 1.0 for key in keys for _, what, kept, *_ in rows[key][1:]):
        raise BaseMismatch(
            f"another node has merged the weights that {me} is for with others", hint="put the hotfix node before it"
        )
    there = patch.manifest.base.sketch
    apart = distance(
        there, sketch({name: weight_at(rows, places[prefix + name]) for name in there if prefix + name in places})
    )
    shapes = {layer: tuple(part_of(rows[split(at)[0]][0][0], at).shape) for layer, at in places.items()}
    if (problem := misfit(patch, shapes, apart, allow_related)) is not None:
        raise problem
    for dtype in {rows[key][0][0].dtype for key in keys}:
        if (left := _survival(patch, places, rows, dtype)) < LEAST_SURVIVAL:
            raise StackError(
                f"ComfyUI adds changes to the weights: only {left:.0%} of {me} would survive in {_name(dtype)}",
                wanted=f"at least {LEAST_SURVIVAL:.0%}",
                hint="load the model with more bits, such as by --fp32-unet",
            )
    return apart


def _survival(patch: Patch, places: Mapping[str, Place], rows: Rows, dtype: torch.dtype) -> float:
    stated = patch.manifest.merge_survival.get(_name(dtype))
    if stated is not None:
        return stated
    layers = [layer for layer, at in places.items() if rows[split(at)[0]][0][0].dtype == dtype]
    changes = (
        (weight_at(rows, places[layer]), delta(patch.tensors[layer + A], patch.tensors[layer + B])) for layer in layers
    )
    return survival(changes, dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
