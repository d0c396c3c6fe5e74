"""Merge: several patches of one base as one, exactly.

Factors are concatenated, never summed: ΔW = [B_1 B_2] [A_1; A_2].
"""

from collections.abc import Sequence
from importlib.metadata import version as installed

import torch
from packaging.requirements import Requirement
from pydantic import ValidationError
from torch import Tensor

from hotfix import relations
from hotfix.errors import StackError, joined
from hotfix.manifest import Manifest, Scope, now
from hotfix.patch import A, B, Patch, digest, from_torch
from hotfix.ranks import even
from hotfix.sketch import spread


def merge(patches: Sequence[Patch], name: str, version: str) -> Patch:
    """One patch that does what a stack of these does, in this order.

    It supersedes its parts, and requires and conflicts with what they do among others; what they ask of one another
    must hold. Every layer gets one rank (hotfix/ranks.py). How much of it would survive rounding cannot be told without
    the base, so `merge_survival` is empty. What was measured of the parts was not measured of the whole: score it. Its
    `scope` is that of the parts, where all were measured, and in the same way.

    Args:
        patches: at least two, with different names.
        name: of the new patch line.
        version: PEP 440.

    Raises:
        StackError: fewer than two, two of one name, or of different bases; patches that cannot be in one stack; a name
            and version that one of them has or speaks of.
    """
    names = [patch.name for patch in patches]
    if len(patches) < 2 or len(set(names)) < len(names):
        raise StackError(
            f"{', '.join(names) or 'nothing'} cannot be merged",
            wanted="two patches or more, of different names",
            hint="of two versions of one patch, leave the older out",
        )
    first = patches[0].manifest
    for patch in patches[1:]:
        relations.same_base(first, patch.manifest)
        if patch.manifest.base.component != first.base.component:
            raise StackError(
                f"{patch.name} {patch.version} patches the {patch.manifest.base.component}",
                wanted=f"patches of one component, such as the {first.base.component}",
                hint="put them on together instead",
            )
    parts = [patch.manifest for patch in patches]
    inside = {patch.name: patch.version for patch in patches}
    outside = {text for one in parts for text in one.requires if Requirement(text).name not in inside}
    within = [one.model_copy(update={"requires": [t for t in one.requires if t not in outside]}) for one in parts]
    if found := relations.problems(within):
        raise joined(found, StackError)
    entries = from_torch(_concatenated(patches))
    try:
        manifest = Manifest(
            name=name,
            version=version,
            digest=digest(entries),
            base=first.base.model_copy(update={"sketch": _sketch(parts)}),
            recipe={"merged": [{"id": patch.id, "recipe": patch.manifest.recipe} for patch in patches]},
            requires=sorted(outside),
            conflicts=sorted({text for one in parts for text in one.conflicts}),
            supersedes=sorted(
                {text for one in parts for text in one.supersedes} | {f"{n}=={v}" for n, v in inside.items()}
            ),
            scope=_scope(parts),
            targets=[target for one in parts for target in one.targets],
            strength=1.0,
            request="; ".join(dict.fromkeys(one.request for one in parts if one.request)),
            created=now(),
            tool=f"hotfix {installed('diffusion-hotfix')}",
        )
    except ValidationError as error:
        raise StackError(
            f"{name} {version} cannot be merged into",
            wanted="a name of small letters, digits and hyphens, and a version such as 1.0.0",
            hint=str(error.errors()[0]["msg"]),
        ) from error
    spoken_of = (*manifest.requires, *manifest.conflicts, *manifest.supersedes)
    if itself := [text for text in spoken_of if relations.met(text, {name: version})]:
        raise StackError(
            f"{name} {version} would speak of itself as {itself[0]}",
            wanted="a name and version that no part has, requires, supersedes or conflicts with",
            hint="name a new patch line",
        )
    return Patch(manifest.text(), entries)


def _concatenated(patches: Sequence[Patch]) -> dict[str, Tensor]:
    layers = sorted({layer for patch in patches for layer in patch.layers})
    factors = {}
    for layer in layers:
        having = [patch.tensors for patch in patches if layer + A in patch.tensors]
        factors[layer + A] = torch.cat([tensors[layer + A].float() for tensors in having], dim=0)
        factors[layer + B] = torch.cat([tensors[layer + B].float() for tensors in having], dim=1)
    return even(factors)


def _scope(parts: Sequence[Manifest]) -> Scope | None:
    """Of a claim that holds for every part; None where one was not measured, or otherwise than another."""
    scopes = [one.scope for one in parts if one.scope]
    highest = max((one.t_lo for one in scopes), default=0.0)
    first, *others = [one.scope.model_copy(update={"t_lo": highest}) if one.scope else None for one in parts]
    return first if all(one == first for one in others) else None


def _sketch(parts: Sequence[Manifest]) -> dict[str, float]:
    """Of layers that the parts are recognised by: they agree on those that they share."""
    known = {layer: number for one in parts for layer, number in one.base.sketch.items()}
    return {layer: known[layer] for layer in spread(known)}
