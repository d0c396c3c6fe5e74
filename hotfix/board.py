"""Board: what all parts of a patched model look at, and the generations that still need what was on before.

A generation notes at its beginning which snapshot is current and is made under that one to its last step, whatever
other threads put on or take off meanwhile. Nothing is locked while a model runs.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from threading import Condition, RLock, get_ident
from types import FrameType, MappingProxyType
from typing import Any, Self

from torch import nn

from hotfix.errors import HostError
from hotfix.fold import Kept
from hotfix.snapshot import Snapshot

# Held while a board changes, never while a file is read or a model runs. Notified when a generation ends, and when a
# board that had to wait for that has changed.
CHANGING = Condition(RLock())

Links = tuple[list[dict], list[Any], list[Any]]  # dictionaries, keys in them, and what was there


class Board:
    """What all hooks of one model look at: the current snapshot, and which others a running generation still needs."""

    def __init__(self, early: Mapping[int, FrameType], kept: Kept | None = None) -> None:
        """`early` are calls of the pipeline that run already, by thread: nothing is on for them to their end."""
        self.current = Snapshot()
        self.early = dict(early)
        self.closed = 0  # to new generations, by the thread that changes the weights themselves
        self.kept = kept  # originals of a stack that is folded; None of one that is beside its weights
        self.names: dict[nn.Module, str] = {}  # of the patched layers
        self.marks: list[Any] = []  # see hotfix/fold.py
        self.pins: Counter[Snapshot] = Counter()
        self.links: list[Links] | None = None  # see hotfix/reach.py
        self.turn = 0  # which half of them was compared last

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no generation runs: those that do are waited for, and no other begins. With `CHANGING` held.

        Raises:
            HostError: the thread that asks is inside such a generation itself.
        """
        if self.inside:
            raise HostError(
                "a folded stack cannot change inside a generation", hint="change it from another thread, or after it"
            )
        if self.closed == get_ident():
            yield
            return
        while self.closed:
            CHANGING.wait()
        self.closed = get_ident()
        try:
            while self.pins or any(map(_runs, self.early.values())):
                CHANGING.wait(0.05)
            yield
        finally:
            self.closed = 0
            CHANGING.notify_all()

    @property
    def inside(self) -> bool:
        """Whether who asks is inside a generation that has noted its snapshot of this model."""
        return self in _pinned.get()

    def now(self) -> Snapshot:
        """The snapshot of the generation that asks; the current one outside of any."""
        if self.early and (found := self._early()) is not None:
            return found
        return _pinned.get().get(self, self.current)

    def _early(self) -> Snapshot | None:
        thread = get_ident()
        frame = self.early.get(thread)
        if frame is not None and _runs(frame):
            return Snapshot()
        self.early.pop(thread, None)
        return None

    def __deepcopy__(self, memo: dict) -> Self:
        made = memo[id(self)] = type(self)({})
        made.current, made.kept = deepcopy(self.current, memo), deepcopy(self.kept, memo)
        made.names = deepcopy(self.names, memo)
        return made

    def purge(self) -> None:
        """Let go of early calls that have ended, and of everything that their frames hold."""
        self.early = {thread: frame for thread, frame in self.early.items() if _runs(frame)}

    @property
    def needed(self) -> set[nn.Module]:
        """Layers that carry something for the current snapshot, or for one that is still drawn with."""
        return {layer for snapshot in (self.current, *self.pins) for layer in snapshot.layers}


def _runs(frame: FrameType) -> bool:
    try:
        frame.clear()  # refused as long as it runs
    except RuntimeError:
        return True
    return False


_pinned: ContextVar[Mapping[Board, Snapshot]] = ContextVar("hotfix_pinned", default=MappingProxyType({}))


@contextmanager
def pinned(boards: Sequence[Board]) -> Iterator[None]:
    """Whatever runs inside, in this thread or task, is made under the snapshots that are current now."""
    known = _pinned.get()
    with CHANGING:  # of several boards, all before a change or all after it
        while any(board.closed for board in boards if board not in known):
            CHANGING.wait()
        mine = {board: board.current for board in boards if board not in known}
        for board, snapshot in mine.items():
            board.pins[snapshot] += 1
    token = _pinned.set({**known, **mine})
    try:
        yield
    finally:
        _pinned.reset(token)
        with CHANGING:
            for board, snapshot in mine.items():
                board.pins[snapshot] -= 1
                board.pins += Counter()  # drops those that are at zero
            CHANGING.notify_all()
