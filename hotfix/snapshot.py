"""Snapshot: what is on a model at one moment. A change is another snapshot, and a running generation keeps its own.

Nothing is locked while a model runs. A generation notes at its beginning which snapshot is current and is made under
that one to its last step, whatever other threads put on or take off meanwhile.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from threading import RLock, get_ident
from types import FrameType, MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

CHANGING = RLock()  # held while a board changes, never while a file is read or a model runs


@dataclass(frozen=True)
class Factors:
    """The part of one patch that acts on one layer."""

    name: str
    version: str
    id: str
    layers: int  # how many layers the patch has in all: fewer than that, and it is not whole
    a: Tensor  # (r, in) or (r, in, kh, kw)
    b: Tensor  # (out, r) or (out, r, 1, 1)


class Product:
    """B_1 A_1 + B_2 A_2 + … of one layer, in stack order.

    The factors are concatenated, never summed: A = [A_1; A_2], B = [B_1 B_2], which is exact. They are kept in the
    dtype of their files and cast once for every device and dtype that the layer computes in, because a quantised or
    offloaded weight says nothing of either.
    """

    def __init__(self, stack: Sequence[Factors]) -> None:
        self.stack = tuple(stack)
        self._cast: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A, and B as it is multiplied with: transposed, (r, out), of a Linear; as it is, of a Conv2d."""
        found = self._cast.get((device, dtype))
        if found is None:
            a = torch.cat([f.a for f in self.stack], dim=0).to(device, dtype)
            b = torch.cat([f.b for f in self.stack], dim=1).to(device, dtype)
            found = self._cast[device, dtype] = (a, b.t().contiguous() if b.ndim == 2 else b)
        return found

    def __deepcopy__(self, memo: dict) -> Self:
        return self  # never changed: the copy of a model shares it


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What is on a model: an ordered stack, by layer."""

    order: tuple[str, ...] = ()  # ids of the patches
    layers: Mapping[nn.Module, Product] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Names what a picture was made under: sha256 over the ids of the patches in their order; empty without any."""
        return f"sha256:{hashlib.sha256(' '.join(self.order).encode()).hexdigest()}" if self.order else ""

    def carried(self) -> dict[str, tuple[Factors, list[nn.Module]]]:
        """Id of every patch, in order, to one of its factors and the layers that carry it."""
        found: dict[str, tuple[Factors, list[nn.Module]]] = {}
        for layer, product in self.layers.items():
            for factors in product.stack:
                found.setdefault(factors.id, (factors, []))[1].append(layer)
        return {id_: found[id_] for id_ in self.order}

    def without(self, gone: set[str]) -> Self:
        """The rest, computed from the files of the rest alone: its bits are those of a stack that never had more."""
        kept = {layer: tuple(f for f in product.stack if f.id not in gone) for layer, product in self.layers.items()}
        return type(self)(
            tuple(id_ for id_ in self.order if id_ not in gone),
            {layer: Product(stack) for layer, stack in kept.items() if stack},
        )

    def above(self, new: Mapping[nn.Module, Sequence[Factors]]) -> Self:
        """This stack with more on top."""
        layers = dict(self.layers)
        order = list(self.order)
        for layer, factors in new.items():
            layers[layer] = Product((*(layers[layer].stack if layer in layers else ()), *factors))
            order += [f.id for f in factors if f.id not in order]
        return type(self)(tuple(order), layers)


class Board:
    """What all hooks of one model look at: the current snapshot, and which others a running generation still needs."""

    def __init__(self, early: Mapping[int, FrameType]) -> None:
        """`early` are calls of the pipeline that run already, by thread: nothing is on for them to their end."""
        self.current = Snapshot()
        self.early = dict(early)
        self.pins: Counter[Snapshot] = Counter()
        self.links: tuple[list[dict], list[Any], list[Any]] | None = None  # see hotfix/guard.py

    def now(self) -> Snapshot:
        """The snapshot of the generation that asks; the current one outside of any."""
        if self.early and (found := self._early()) is not None:
            return found
        return _pinned.get().get(self, self.current)

    def _early(self) -> Snapshot | None:
        thread = get_ident()
        frame = self.early.get(thread)
        if frame is not None:
            try:
                frame.clear()  # refused as long as it runs
            except RuntimeError:
                return Snapshot()
            self.early.pop(thread, None)
        return None

    def __deepcopy__(self, memo: dict) -> Self:
        made = memo[id(self)] = type(self)({})
        made.current = deepcopy(self.current, memo)
        return made

    @property
    def needed(self) -> set[nn.Module]:
        """Layers that carry something for the current snapshot, or for one that is still drawn with."""
        return {layer for snapshot in (self.current, *self.pins) for layer in snapshot.layers}


_pinned: ContextVar[Mapping[Board, Snapshot]] = ContextVar("hotfix_pinned", default=MappingProxyType({}))


@contextmanager
def pinned(boards: Sequence[Board]) -> Iterator[None]:
    """Whatever runs inside, in this thread or task, is made under the snapshots that are current now."""
    known = _pinned.get()
    with CHANGING:  # of several boards, all before a change or all after it
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
