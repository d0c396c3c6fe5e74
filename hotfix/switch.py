"""Switch: make other snapshots current, on all models of a pipeline at once or on none."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hotfix.board import CHANGING, Board
from hotfix.errors import HostError
from hotfix.fold import GIVE_UP, Kept
from hotfix.guard import hook, instrument, sweep
from hotfix.patch import Patch
from hotfix.reach import board, check, current, known, models
from hotfix.snapshot import Snapshot


@dataclass(frozen=True)
class Change:
    """What is to become of what is on."""

    gone: set[str]  # ids that go off,
    new: tuple[Patch, ...] = ()  # patches that go on then,
    order: tuple[str, ...] = ()  # and the ids in the order that they shall have; any others are above them
    holds: Callable[[], bool] = lambda: True  # whether there is still reason for it


def switch(
    pipe: Any,
    seen: Mapping[nn.Module, Snapshot | None],
    wanted: Mapping[nn.Module, Snapshot],
    names: Mapping[nn.Module, str],
    fold: Kept | None = None,
    holds: Callable[[], bool] = lambda: True,
) -> bool:
    """Make `wanted` what is on. New generations see it; those that run do not.

    Args:
        pipe: the pipeline of these models.
        seen: what was on each model when `wanted` was made of it.
        wanted: the new snapshot of each model.
        names: of every layer that is new in a snapshot, in its model.
        fold: where originals are to be kept, for models that nothing is on yet; None puts patches beside the weights.
            What is folded already stays so.
        holds: whether there is still reason for the change; asked when nobody else can change anything any more.

    Returns:
        False where another thread has changed meanwhile what is on, or the reason is gone: then nothing was done.

    Raises:
        HostError: a layer is not reached any more, or the host wrote to folded weights.
        StackError: a stack that cannot be folded. Whatever is raised, the previous snapshots are on.
    """
    for model, snapshot in wanted.items():
        if fold is None and ((found := board(model)) is None or found.kept is None):
            for layer, product in snapshot.layers.items():
                weight = layer.get_parameter("weight")
                product.on(weight.device, _dtype(weight))  # what can run out of memory does it here
    with CHANGING, ExitStack() as alone:
        before: dict[nn.Module, Snapshot] = {}
        try:
            for model, snapshot in wanted.items():
                if current(model) is not seen[model]:
                    return False
                if board(model) is None:
                    instrument(pipe, model, Board(_running(model), None if fold is None else Kept(fold.folder)))
                before[model] = known(model).current
                known(model).names |= {layer: names[layer] for layer in snapshot.layers if layer in names}
                if known(model).kept is None:
                    hook(model, snapshot)
                else:
                    alone.enter_context(known(model).alone())
                    _refuse_foreign(known(model))
            if any(current(model) is not snapshot for model, snapshot in before.items()) or not holds():
                return False  # while a folded one waited for running generations
            _make_all_current(wanted, before)
        finally:
            sweep(pipe, list(wanted))
    return True


def _dtype(weight: Tensor) -> torch.dtype:
    """What the layer most likely computes in: not the 8 bits that it may be kept in."""
    return weight.dtype if weight.dtype.is_floating_point and weight.dtype.itemsize > 1 else torch.float32


def _make_all_current(wanted: Mapping[nn.Module, Snapshot], before: Mapping[nn.Module, Snapshot]) -> None:
    try:
        for model, snapshot in wanted.items():
            _make_current(known(model), snapshot)
        for model in wanted:
            check(model)
    except BaseException:
        for model, snapshot in before.items():
            if (found := known(model)).current is not snapshot or (found.kept is not None and found.kept.torn):
                _make_current(found, snapshot)
        raise


def _make_current(found: Board, snapshot: Snapshot) -> None:
    if found.kept is not None:
        found.kept.fold(snapshot)
    found.current, found.links = snapshot, None


def _refuse_foreign(found: Board) -> None:
    if found.kept is not None and (foreign := found.kept.foreign()):
        raise HostError(
            f"somebody else wrote to {len(foreign)} of the weights that {found.current.names} is folded into",
            hint=GIVE_UP,
        )


def _running(model: nn.Module) -> dict[int, FrameType]:
    """Calls of pipelines with this model that other threads are in: they began before anything could be noted."""
    found = {}
    for thread, innermost_frame in sys._current_frames().items():
        frame: FrameType | None = innermost_frame
        while frame is not None:
            pipe = frame.f_locals.get("self") if frame.f_code.co_name == "__call__" else None
            with contextlib.suppress(Exception):  # of anybody's object, when it is asked for its components
                if pipe is not model and any(part is model for part in models(pipe).values()):
                    found[thread] = frame
            frame = frame.f_back
    return found


class Blocks:
    """The `with` blocks that hold patches on, or off, in whatever thread: the last one that ends undoes it."""

    def __init__(self, on: bool) -> None:
        self.on = on  # what they make of a patch
        self._users: WeakKeyDictionary[nn.Module, dict[str, tuple[int, Any]]] = WeakKeyDictionary()

    def enter(self, pipe: Any, patches: Sequence[Patch], note: Any = None) -> dict[str, nn.Module]:
        """Begin one.

        Args:
            pipe: has the models.
            patches: that it is about.
            note: how to undo it; that of the block that began first is kept.

        Returns:
            Ids and models of the patches that are not as the block wants them, or are so because of other blocks only.
        """
        mine = {}
        with CHANGING:
            for patch in patches:
                if (model := models(pipe).get(patch.manifest.base.component)) is None:
                    continue
                id_ = patch.id
                users, snapshot = self._users.setdefault(model, {}), current(model)
                if id_ in users or (snapshot is not None and id_ in snapshot.order) is not self.on:
                    count, first = users.get(id_, (0, note))
                    users[id_], mine[id_] = (count + 1, first), model
        return mine

    def free(self, mine: Mapping[str, nn.Module]) -> dict[str, Any]:
        """Those that no block holds any more, with their notes; whoever begins one now takes them over."""
        with CHANGING:
            users = {id_: self._users[model].get(id_, (1, None)) for id_, model in mine.items()}
        return {id_: note for id_, (count, note) in users.items() if not count}

    @contextmanager
    def ended(self, mine: Mapping[str, nn.Module]) -> Iterator[None]:
        """Around what undoes it, for those that are `free` then."""
        with CHANGING:
            for id_, model in mine.items():
                count, note = self._users[model][id_]
                self._users[model][id_] = count - 1, note
        try:
            yield
        finally:
            with CHANGING:
                for id_ in self.free(mine):
                    del self._users[mine[id_]][id_]
