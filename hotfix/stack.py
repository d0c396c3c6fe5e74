"""Stack: an ordered tuple of patches, checked together, put on a pipeline and taken off without a trace.

A stack is a value and the pipeline is the only state. This file needs neither an optimiser nor a forget picture.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor, nn

from hotfix import beside, lock, offload, reach, relations, weights
from hotfix.board import CHANGING, Board
from hotfix.errors import BaseMismatch, HotfixError, StackError, joined
from hotfix.fit import misfit
from hotfix.fold import Kept
from hotfix.patch import A, B, Patch
from hotfix.sketch import SAME, distance, sketch
from hotfix.snapshot import Factors, Snapshot
from hotfix.switch import Blocks, Change, switch


@dataclass(frozen=True)
class Applied:
    """A patch as found on a pipeline."""

    name: str
    version: str
    id: str
    # shadowed: some of its layers are no longer asked; drifted: somebody wrote to the weights that it is folded into
    state: Literal["on", "shadowed", "drifted"]
    folded: bool
    related: bool  # the base is not the one that it was made for, and somebody allowed that
    originals: int  # bytes of weights that are kept to take it off: of the layers that it is folded into


@dataclass(frozen=True)
class Stack:
    """An ordered tuple of patches. Order changes nothing but the last bits of a picture."""

    patches: tuple[Patch, ...] = ()

    @classmethod
    def of(cls, *patches: Patch) -> Self:
        """A stack of these patches, in this order."""
        return cls(tuple(patches))

    def save(self, path: str | Path) -> Path:
        """Write the stack as a lock: names, versions, ids and order; the patches stay where they are.

        Raises:
            StackError: a patch that is not in a file yet.
            SignatureError: a lock is there that asks for signatures, and a patch has none that counts.
        """
        return lock.save(Path(path), self.patches)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a lock and its patches.

        Raises:
            StackError: one is no longer the patch that was locked.
            SignatureError: the lock says who must have signed, and one is signed by nobody of these.
        """
        return cls(tuple(lock.load(Path(path))))

    def problems(
        self, pipe: Any, *, instead_of: "Stack | None" = None, allow_related_base: bool = False
    ) -> list[HotfixError]:
        """Everything that speaks against putting this stack on this pipeline, in place of another; touches nothing."""
        gone = {patch.id for patch in instead_of.patches} if instead_of else set()
        found: list[HotfixError] = [*relations.problems([patch.manifest for patch in self.patches])]
        versions = {patch.name: patch.version for patch in self.patches}
        sketched: dict[str, float] = {}
        for patch in self.patches:
            problem = base_problem(patch, pipe, allow_related_base, sketched)
            if problem is not None:
                found.append(problem)
        for on in _found(pipe, _current):
            if on.id not in gone and on.name in versions and versions[on.name] != on.version:
                found.append(
                    StackError(f"{on.name} {on.version} is on already", hint="remove it before another version goes on")
                )
        return found

    def check(self, pipe: Any, *, instead_of: "Stack | None" = None, allow_related_base: bool = False) -> None:
        """Raise one error that names every problem; touch nothing.

        Args:
            pipe: a diffusers pipeline.
            instead_of: a stack that goes off in the same moment.
            allow_related_base: take weights that are like those the patch was made for, but not the same: quantised to
                4 bits, fine-tuned, or with something fused into them. What was measured does not speak of them.

        Raises:
            BaseMismatch: the only problems are about the base.
            StackError: anything else.
        """
        found = self.problems(pipe, instead_of=instead_of, allow_related_base=allow_related_base)
        if found:
            kind = BaseMismatch if all(isinstance(problem, BaseMismatch) for problem in found) else StackError
            raise joined(found, kind)

    def apply(
        self, pipe: Any, *, fold: bool = False, originals: Path | None = None, allow_related_base: bool = False
    ) -> None:
        """Put the stack on, after whatever is on already: all of it or nothing. Twice is once.

        Args:
            pipe: a diffusers pipeline.
            fold: write ΔW into the weights, which costs nothing at run time and keeps the touched originals; by default
                it is computed beside them. What goes on later goes the way of what is on.
            originals: a folder to keep them in, instead of in memory.
            allow_related_base: as for `check`; `applied` says so of each patch from then on.

        Raises:
            HotfixError: `check` found a problem, or the stack cannot be folded; the pipeline is as it was.
        """

        def decide() -> Change:
            self.check(pipe, allow_related_base=allow_related_base)
            on = {entry.id: entry.state for entry in _found(pipe, _current)}
            new = {patch.id: patch for patch in self.patches if on.get(patch.id) != "on"}
            return Change(set(new), tuple(new.values()), (*(id_ for id_ in on if id_ not in new), *new))

        _switch(pipe, decide, allow_related_base, Kept(originals) if fold else None)

    def remove(self, pipe: Any) -> None:
        """Take the stack's patches off, exactly; other patches stay, with the bits that they alone would give."""
        _switch(pipe, lambda: Change({patch.id for patch in self.patches}))

    def replace(self, pipe: Any, new: Self, *, allow_related_base: bool = False) -> None:
        """Take this stack off and put `new` on, in its order, in one step: no picture is made with neither.

        Raises:
            HotfixError: `new.check` found a problem; the pipeline is as it was.
        """

        def decide() -> Change:
            new.check(pipe, instead_of=self, allow_related_base=allow_related_base)
            on = {entry.id: entry.state for entry in _found(pipe, _current)}
            order = [patch.id for patch in new.patches]
            others = [id_ for id_ in on if id_ not in order]
            fresh = tuple(patch for patch in new.patches if on.get(patch.id) != "on")
            gone = {patch.id for patch in self.patches}.difference(order) | {patch.id for patch in fresh}
            return Change(gone, fresh, (*others, *order))

        _switch(pipe, decide, allow_related_base)

    @contextmanager
    def on(self, pipe: Any) -> Iterator[None]:
        """Apply for the length of a `with` block. Patches of the stack that were on before stay on after it.

        So do those that another thread's block holds, until the last of these blocks ends.
        """
        mine = _ON.enter(pipe, self.patches)
        try:
            self.apply(pipe)
            yield
        finally:

            def decide() -> Change:
                free = _ON.free(mine)
                return Change(set(free), holds=lambda: _ON.free(mine) == free)

            with _ON.ended(mine):
                _switch(pipe, decide)

    @contextmanager
    def off(self, pipe: Any) -> Iterator[None]:
        """Take off for the length of a `with` block. What was on goes on again after it, folded or beside as it was.

        In its order, too; what others put on meanwhile is above it. Nothing is checked anew: it was on.
        """
        with CHANGING:
            found = _found(pipe, _current)
            boards = [here for model in reach.models(pipe).values() if (here := reach.board(model)) is not None]
            folder = next((here.kept.folder for here in boards if here.kept is not None), None)
            mine = _OFF.enter(pipe, self.patches, (found, folder))
        try:
            self.remove(pipe)
            yield
        finally:

            def decide() -> Change:
                free = _OFF.free(mine)
                back = tuple(patch for patch in self.patches if patch.id in free)
                return Change(set(free), back, order, holds=lambda: _OFF.free(mine) == free)

            with _OFF.ended(mine):
                was, folder = next(iter(_OFF.free(mine).values()), (found, folder))
                order = tuple(entry.id for entry in was)
                related = any(entry.related for entry in was if entry.id in mine)
                fold = any(entry.folded for entry in was if entry.id in mine)
                _switch(pipe, decide, related, Kept(folder) if fold else None)


_ON, _OFF = Blocks(on=True), Blocks(on=False)


def _switch(pipe: Any, decide: Callable[[], Change], allow_related: bool = False, fold: Kept | None = None) -> None:
    """Change what is on, on all components at once; decide again where another thread has changed it meanwhile."""
    done = False
    while not done:
        seen = {model: reach.current(model) for model in reach.models(pipe).values()}
        change, wanted, names = decide(), {}, {}
        if change.gone.difference(patch.id for patch in change.new):
            reach.refuse_lost(pipe)  # going off only from what is there now would leave it on the model that was
        for component, model in reach.models(pipe).items():
            before = seen[model] or Snapshot()
            added: dict[nn.Module, list[Factors]] = {}
            for patch in change.new:
                if patch.manifest.base.component == component:
                    related = allow_related and apart_from_base(patch, model) > SAME
                    for name, layer, factors in _factors(patch, model, related):
                        added.setdefault(layer, []).append(factors)
                        names[layer] = name
            after = before.without(change.gone).above(added).sorted(change.order)
            if added or after.order != before.order:
                wanted[model] = after
        done = switch(pipe, seen, wanted, names, fold, change.holds)


def applied(pipe: Any) -> tuple[Applied, ...]:
    """The patches that act on a pipeline, read from itself: component by component, in order on each."""
    return _found(pipe, Board.now)


def _current(board: Board) -> Snapshot:
    return board.current  # of a thread that is making a picture too: what it changes is not what it draws under


def _found(pipe: Any, which: Callable[[Board], Snapshot]) -> tuple[Applied, ...]:
    found = []
    for model in reach.models(pipe).values():
        if (board := reach.board(model)) is not None:
            reached, folded = reach.reached(model), board.kept is not None
            written_to = board.kept.foreign() if board.kept is not None else set()
            kept = board.kept.originals if board.kept is not None else {}
            for one, layers in which(board).carried().values():
                state: Literal["on", "shadowed", "drifted"] = "on"
                if len(reached.intersection(layers)) < one.layers:
                    state = "drifted" if written_to.intersection(layers) else "shadowed"
                size = sum(kept[layer].nbytes for layer in layers if layer in kept)
                found.append(Applied(one.name, one.version, one.id, state, folded, one.related, size))
    return tuple(found)


def base_problem(
    patch: Patch, pipe: Any, allow_related: bool = False, sketched: dict[str, float] | None = None
) -> BaseMismatch | None:
    """Why a patch cannot act on this pipeline, or None: component, layers, shapes, and the sketch of the weights.

    With `sketched`, by component and layer, many patches of one base read each of its weights once; it is added to.
    """
    base = patch.manifest.base
    me, hint = f"{patch.name} {patch.version}", f"it was made for {base.repo}"
    model = reach.models(pipe).get(base.component)
    if model is None:
        return BaseMismatch(f"{me} patches a {base.component}, which the {type(pipe).__name__} has not", hint=hint)
    prefix = f"{base.component}."
    try:
        shapes = {layer: weights.shape(beside.innermost(model, layer.removeprefix(prefix))) for layer in patch.layers}
        if offload.on_disk(model):
            raise BaseMismatch("the weights are not in memory", hint="put patches on before the pipeline is offloaded")
        apart = apart_from_base(patch, model, sketched)
    except BaseMismatch as error:
        return BaseMismatch(f"{me}: {error}", hint=f"{error.hint}; {hint}")
    return misfit(patch, shapes, apart, allow_related)


def apart_from_base(patch: Patch, model: nn.Module, sketched: dict[str, float] | None = None) -> float:
    """Distance of the weights to those that a patch was made for; `sketched` as for `base_problem`."""
    there, component = patch.manifest.base.sketch, patch.manifest.base.component
    known = {} if sketched is None else sketched
    new = [name for name in there if f"{component}.{name}" not in known]
    found = sketch({name: _of_the_base(model, beside.innermost(model, name)) for name in new})
    known.update({f"{component}.{name}": number for name, number in found.items()})
    return distance(there, {name: known[f"{component}.{name}"] for name in there})


def _of_the_base(model: nn.Module, layer: nn.Linear | nn.Conv2d) -> Tensor:
    """A weight as it was before anything was folded into it."""
    board = reach.board(model)
    kept = board.kept.originals if board is not None and board.kept is not None else {}
    return kept[layer] if layer in kept else weights.dense(layer)


def _factors(
    patch: Patch, model: nn.Module, related: bool = False
) -> Iterator[tuple[str, nn.Linear | nn.Conv2d, Factors]]:
    prefix = f"{patch.manifest.base.component}."
    for key in patch.layers:
        name = key.removeprefix(prefix)
        layer = beside.innermost(model, name)
        a, b = patch.tensors[key + A], patch.tensors[key + B]
        yield name, layer, Factors(patch.name, patch.version, patch.id, len(patch.layers), related, a, b)
