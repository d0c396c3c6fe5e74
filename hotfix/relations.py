"""Relations: what patches say of one another, and whether they can be in one stack. No torch, no pipeline."""

from collections.abc import Mapping, Sequence

from packaging.requirements import Requirement

from hotfix.errors import StackError
from hotfix.manifest import Manifest
from hotfix.recipe import Recipe
from hotfix.sketch import SAME, distance


def problems(stack: Sequence[Manifest | Recipe]) -> list[StackError]:
    """Everything that speaks against a stack of these, whatever the base; a recipe stands for a patch to be."""
    found = []
    names = [one.name for one in stack]
    for name in sorted({name for name in names if names.count(name) > 1}):
        found.append(StackError(f"{name} is listed {names.count(name)} times", hint=f"hotfix rm {name}"))
    for one in stack:
        me = f"{one.name} {one.version}"
        versions = {other.name: other.version for other in stack if other is not one}  # nobody meets their own
        for text in one.requires:
            if not met(text, versions):
                hint = f"add {Requirement(text).name}, or take {one.name} out"
                found.append(StackError(f"{me} requires {text}, which is not in the stack", hint=hint))
        for text in one.conflicts:
            if met(text, versions):
                found.append(StackError(f"{me} conflicts with {text}", hint=f"keep one of them: hotfix rm {one.name}"))
        for text in one.supersedes:
            if met(text, versions):
                hint = f"hotfix rm {Requirement(text).name}"
                found.append(StackError(f"{me} supersedes {text}, which is still listed", hint=hint))
    return found


def met(text: str, versions: Mapping[str, str]) -> bool:
    """Whether name → version holds what a requirement such as `faces>=1.2` asks for."""
    requirement = Requirement(text)
    return requirement.name in versions and requirement.specifier.contains(versions[requirement.name], prereleases=True)


def superseded(by: Manifest, stack: Sequence[Manifest]) -> list[str]:
    """Names of those that one says it takes the place of."""
    return [one.name for one in stack if any(met(text, {one.name: one.version}) for text in by.supersedes)]


def with_required(one: Manifest, stack: Sequence[Manifest]) -> list[str]:
    """Names of a patch and of everything that it builds on, in stack order."""
    by_name = {other.name: other for other in stack}
    needed, left = set(), [one.name]
    while left:
        name = left.pop()
        if name in by_name and name not in needed:
            needed.add(name)
            left += [Requirement(text).name for text in by_name[name].requires]
    return [other.name for other in stack if other.name in needed]


def same_base(one: Manifest, other: Manifest) -> None:
    """Raise StackError where two patches were made for different bases: by class, and by the weights of a component."""
    a, b = one.base, other.base
    alike = True  # nothing speaks against patches of two components
    if a.component == b.component:
        common = {layer: number for layer, number in a.sketch.items() if layer in b.sketch}
        alike = a.component_class == b.component_class and (not common or distance(common, b.sketch) <= SAME)
    if a.pipeline_class != b.pipeline_class or not alike:
        raise StackError(
            f"{other.name} {other.version} was made for {b.repo}, {one.name} {one.version} for {a.repo}",
            wanted="patches of one base",
            hint="put them on together instead: Stack.of(…).check(pipe) says whether they fit",
        )
