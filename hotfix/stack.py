"""Stack: an ordered tuple of patches, checked together, put on a pipeline and taken off without a trace.

A stack is a value and the pipeline is the only state. This file needs neither an optimiser nor a forget picture.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from packaging.requirements import Requirement
from torch import nn

from hotfix import beside, lock
from hotfix.beside import Factors
from hotfix.errors import BaseMismatch, HotfixError, StackError
from hotfix.patch import A, B, Patch
from hotfix.sketch import SAME, distance, sketch


@dataclass(frozen=True)
class Applied:
    """A patch as found on a pipeline."""

    name: str
    version: str
    id: str
    state: str  # "on", or "broken" when some of its layers no longer carry it


@dataclass(frozen=True)
class Stack:
    """An ordered tuple of patches. Order changes nothing but the last bits of a picture."""

    patches: tuple[Patch, ...] = ()

    @classmethod
    def of(cls, *patches: Patch) -> Self:
        """A stack of these patches, in this order."""
        return cls(tuple(patches))

    def save(self, path: str | Path) -> Path:
        """Write the stack as a lock: names, versions, ids and order; the patches stay in their files.

        Raises:
            StackError: a patch that is not in a file yet.
        """
        for patch in self.patches:
            if patch.source is None:
                raise StackError(
                    f"{patch.name} {patch.version} is in no file yet",
                    hint="save it, and load it from there: Patch.load(patch.save('dist'))",
                )
        rows = [(patch, patch.source) for patch in self.patches if patch.source is not None]
        return lock.save(Path(path), rows)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a lock and its patches. Raises StackError when one is no longer the patch that was locked."""
        return cls(tuple(lock.load(Path(path))))

    def problems(self, pipe: Any) -> list[HotfixError]:
        """Everything that speaks against putting this stack on this pipeline; touches nothing."""
        found: list[HotfixError] = []
        names = [patch.name for patch in self.patches]
        versions = {patch.name: patch.version for patch in self.patches}
        for name in sorted({name for name in names if names.count(name) > 1}):
            found.append(StackError(f"{name} is listed {names.count(name)} times", hint=f"hotfix rm {name}"))
        for patch in self.patches:
            me, manifest = f"{patch.name} {patch.version}", patch.manifest
            for text in manifest.requires:
                if not _met(text, versions):
                    found.append(StackError(f"{me} requires {text}, which is not in the stack", hint="add it"))
            for text in manifest.conflicts:
                if _met(text, versions):
                    found.append(StackError(f"{me} conflicts with {text}", hint=f"hotfix rm {patch.name}"))
            for text in manifest.supersedes:
                if _met(text, versions):
                    found.append(StackError(f"{me} supersedes {text}, which is still listed", hint=f"hotfix rm {text}"))
            problem = base_problem(patch, pipe)
            if problem is not None:
                found.append(problem)
        for on in applied(pipe):
            if on.name in versions and versions[on.name] != on.version:
                found.append(
                    StackError(f"{on.name} {on.version} is on already", hint="remove it before another version goes on")
                )
        return found

    def check(self, pipe: Any) -> None:
        """Raise one error that names every problem; touch nothing.

        Raises:
            BaseMismatch: the only problems are about the base.
            StackError: anything else.
        """
        found = self.problems(pipe)
        if found:
            kind = BaseMismatch if all(isinstance(problem, BaseMismatch) for problem in found) else StackError
            hints = dict.fromkeys(problem.hint for problem in found if problem.hint)
            raise kind("; ".join(map(str, found)), hint="; ".join(hints))

    def apply(self, pipe: Any) -> None:
        """Put the stack on, after whatever is on already: all of it or nothing. Twice is once.

        Raises:
            HotfixError: `check` found a problem; the pipeline is as it was.
        """
        self.check(pipe)
        on = {entry.id for entry in applied(pipe) if entry.state == "on"}
        new = [patch for patch in self.patches if patch.id not in on]
        for component in sorted({patch.manifest.base.component for patch in new}):
            model = getattr(pipe, component)
            wanted = {layer: tuple(f for f in hook.stack if f.id in on) for layer, _, hook in beside.hooks(model)}
            for patch in (p for p in new if p.manifest.base.component == component):
                for layer, factors in _factors(patch, model):
                    wanted[layer] = (*wanted.get(layer, ()), factors)
            beside.replace(model, wanted)

    def remove(self, pipe: Any) -> None:
        """Take the stack's patches off, exactly; other patches stay, with the bits that they alone would give."""
        ours = {patch.id for patch in self.patches}
        for component in sorted({patch.manifest.base.component for patch in self.patches}):
            model = getattr(pipe, component)
            kept = {layer: tuple(f for f in hook.stack if f.id not in ours) for layer, _, hook in beside.hooks(model)}
            beside.replace(model, kept)

    @contextmanager
    def on(self, pipe: Any) -> Iterator[None]:
        """Apply for the length of a `with` block. Patches of the stack that were on before stay on after it."""
        before = {entry.id for entry in applied(pipe)}
        self.apply(pipe)
        try:
            yield
        finally:
            Stack(tuple(patch for patch in self.patches if patch.id not in before)).remove(pipe)


def applied(pipe: Any) -> tuple[Applied, ...]:
    """The patches that act on a pipeline, in order, read from the pipeline itself."""
    return tuple(
        Applied(one.name, one.version, one.id, "on" if count == one.layers else "broken")
        for model in getattr(pipe, "components", {}).values()
        if isinstance(model, nn.Module)
        for one, count in beside.present(model).values()
    )


def base_problem(patch: Patch, pipe: Any) -> BaseMismatch | None:
    """Why a patch cannot act on this pipeline, or None: component, layers, shapes, and the sketch of the weights."""
    base = patch.manifest.base
    me, hint = f"{patch.name} {patch.version}", f"it was made for {base.repo}"
    model = getattr(pipe, base.component, None)
    if not isinstance(model, nn.Module):
        return BaseMismatch(f"{me} patches a {base.component}, which the {type(pipe).__name__} has not", hint=hint)
    try:
        layers = dict(_factors(patch, model))
        known = {name: beside.innermost(model, name).weight for name in base.sketch}
    except BaseMismatch as error:
        return BaseMismatch(f"{me}: {error}", hint=hint)
    for layer, factors in layers.items():
        delta = (factors.b.shape[0], *factors.a.shape[1:])
        if tuple(layer.weight.shape) != delta:
            return BaseMismatch(
                f"{me} holds a change of shape {delta} for a weight of {tuple(layer.weight.shape)}", hint=hint
            )
    apart = distance(base.sketch, sketch(known))
    if not apart <= SAME:
        return BaseMismatch(
            f"{me} was made for {base.repo}; these weights differ (sketch {apart:.3f} > {SAME})",
            hint="load the base that the patch names, or build the patch again for this one",
        )
    return None


def _factors(patch: Patch, model: nn.Module) -> Iterator[tuple[nn.Module, Factors]]:
    prefix = f"{patch.manifest.base.component}."
    for name in patch.layers:
        layer = beside.innermost(model, name.removeprefix(prefix))
        a, b = patch.tensors[name + A], patch.tensors[name + B]
        yield layer, Factors(patch.name, patch.version, patch.id, len(patch.layers), a, b)


def _met(text: str, versions: dict[str, str]) -> bool:
    requirement = Requirement(text)
    return requirement.name in versions and requirement.specifier.contains(versions[requirement.name], prereleases=True)
