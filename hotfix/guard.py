"""Guard: whatever the host does to a model, its patches act, or the host's call raises and names them.

While something is on, a model and its pipeline are instances of a subclass of their own class, of the same name. There
a call notes the snapshot that it belongs to and compares that every patched layer is where it was, and the few host
calls are met that would otherwise go past a patch, or past the originals of a folded one.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any

import torch
from torch import nn

from hotfix.beside import Beside, hooks
from hotfix.board import CHANGING, Board, pinned
from hotfix.errors import HostError
from hotfix.reach import BOARD, board, carry, check, known, models, refuse_lost
from hotfix.snapshot import Snapshot

_NOTING = "_hotfix_noting"  # on a pipeline that stays under guard without patches
_noted: ContextVar[list[str] | None] = ContextVar("hotfix_noted", default=None)


@contextmanager
def noted() -> Iterator[list[str]]:
    """The snapshot ids of all pictures made inside, as they begin: in this thread or task, and in those that get a copy
    of its context, as `asyncio.to_thread` and Starlette's `run_in_threadpool` give them.

    Pictures of a bare pipeline are in it, as "", only after `note_always`.
    """
    ids: list[str] = []
    token = _noted.set(ids)  # a list, because a copied context shares it
    try:
        yield ids
    finally:
        _noted.reset(token)


def note_always(pipe: Any) -> None:
    """From now on also a bare picture of this pipeline is noted, and it has `.hotfix`, which is ""."""
    setattr(pipe, _NOTING, True)
    if type(pipe) not in _PLAIN:
        pipe.__class__ = _generating(type(pipe))


def snapshot_id(pipe: Any) -> str:
    """What `pipe(…).hotfix` would be of a picture that began now."""
    return _ids([found for model in models(pipe).values() if (found := board(model)) is not None])


def _ids(boards: Sequence[Board]) -> str:
    return " ".join(found.now().id for found in boards if found.now().order)


@contextmanager
def generation(pipe: Any) -> Iterator[str]:
    """One picture, or batch: made wholly under what is on at its beginning, whatever other threads change meanwhile.

    A pipeline that has patches on does this by itself at every call. Use it around a loop of your own.

    Yields:
        The snapshot's id, "" without patches: put it into the picture's metadata.

    Raises:
        HostError: a patched layer is no longer where it was.
    """
    parts = [model for model in models(pipe).values() if board(model) is not None]
    boards = [found for model in parts if (found := board(model)) is not None]
    refuse_lost(pipe)
    for model in parts:
        check(model)
    try:
        with pinned(boards):
            snapshot, ids = _ids(boards), _noted.get()
            if ids is not None:
                ids.append(snapshot)
            yield snapshot
        refuse_lost(pipe)
        for model in parts:
            check(model)
    finally:
        sweep(pipe, parts)


def hook(model: nn.Module, snapshot: Snapshot) -> None:
    """Hooks on every layer that a snapshot needs; they do nothing until it is current."""
    for layer, key, one in hooks(model):
        if one.board is not known(model) and layer in snapshot.layers:  # a copied one, in the place of the original
            del layer._forward_hooks[key]
    hooked = {layer for layer, _, _ in hooks(model)}
    new = [layer for layer in snapshot.layers if layer not in hooked]
    for layer in new:
        layer.register_forward_hook(Beside(layer, known(model)))
    if new and "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # compiled graphs do not guard on hooks: they would go on without the patch


def sweep(pipe: Any, parts: Sequence[nn.Module]) -> None:
    """Take off what neither the current snapshot nor a running generation needs: after the last one, every trace."""
    with CHANGING:
        for model in parts:
            found = board(model)
            if found is None:
                continue
            found.purge()
            needed = found.needed
            for layer, key, one in list(hooks(model)):
                copied = one.board is not found and one.board.current.order == found.current.order
                if layer not in needed and not (needed and copied):
                    del layer._forward_hooks[key]
                    found.links = None
            found.names = {layer: name for layer, name in found.names.items() if layer in needed}
            if not needed:
                delattr(model, BOARD)
                model.__class__ = _plain(type(model))
        if not carry(pipe) and type(pipe) in _PLAIN and _NOTING not in pipe.__dict__:
            pipe.__class__ = _plain(type(pipe))


@contextmanager
def lifted(model: nn.Module) -> Iterator[None]:
    """The originals, for a host call that writes to the weights; then the stack is folded into what it left.

    Raises:
        StackError: the stack cannot be folded into that, or too little of it would survive. It is beside it then.
    """
    found = known(model)
    if found.kept is None:
        yield
        return
    with CHANGING, found.alone():
        snapshot, kept = found.current, found.kept
        with _or_beside(model):
            kept.fold(Snapshot())
        try:
            yield
        finally:
            with _or_beside(model):
                kept.fold(snapshot)


@contextmanager
def _or_beside(model: nn.Module) -> Iterator[None]:
    """A stack that can no longer be folded goes beside the weights, and the host hears of it."""
    found = known(model)
    try:
        yield
    except BaseException:
        if found.kept is not None:
            found.kept.fold(Snapshot())
        found.kept = None
        hook(model, found.current)
        raise
    finally:
        found.links = None


_PLAIN: dict[type, Any] = {}  # the class behind each of the two kinds below


def _plain(kind: type) -> Any:
    return _PLAIN[kind]


def instrument(pipe: Any, model: nn.Module, made: Board) -> None:
    """Make a model and a pipeline instances of the subclasses below, and give the model its board."""
    setattr(model, BOARD, made)
    carry(pipe)
    model.__class__ = _guarded(type(model))
    if type(pipe) not in _PLAIN:
        pipe.__class__ = _generating(type(pipe))


@cache
def _guarded(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a model while something is on.

    Calls go to `kind` by name: while one is on its way, another thread may take the last patch off, and this class too.
    """

    class Guarded(kind):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or (found := board(self)) is None:
                return kind.__call__(self, *args, **kwargs)
            check(self, step=found.inside)
            with pinned([found]):
                return kind.__call__(self, *args, **kwargs)

        def fuse_qkv_projections(self, *args: Any, **kwargs: Any) -> None:
            """Refused: the fused layers are new ones, made of the weights without the patches."""
            raise HostError(
                f"fuse_qkv_projections would put {known(self).current.names} out of action",
                hint="fuse first and build the patch on that, or do without: it only saves time",
            )

        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            """The base's: what is saved or copied from here is a clean base, folded or not."""
            state = super().state_dict(*args, **kwargs)
            kept = known(self).kept
            if kept is not None:
                originals = {id(layer.weight): original for layer, original in kept.originals.items()}
                for name, p in self.named_parameters(remove_duplicate=False):
                    key = kwargs.get("prefix", "") + name
                    if id(p) in originals and key in state:
                        state[key] = originals[id(p)].to(p.device, copy=True)
            return state

        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            with lifted(self):
                return super().load_state_dict(*args, **kwargs)

        def _apply(self, *args: Any, **kwargs: Any) -> Any:
            moved = super()._apply(*args, **kwargs)  # offloaders do this inside a generation: no originals needed
            if (kept := known(self).kept) is not None:
                with _or_beside(self):
                    kept.rebase(known(self).current)
            return moved

        def fuse_lora(self, *args: Any, **kwargs: Any) -> Any:
            with lifted(self):
                return super().fuse_lora(*args, **kwargs)

        def unfuse_lora(self, *args: Any, **kwargs: Any) -> Any:
            with lifted(self):
                return super().unfuse_lora(*args, **kwargs)

    return _named(Guarded, kind)


@cache
def _generating(kind: type) -> type:
    """The class of a pipeline while something is on."""

    class Generating(kind):
        @wraps(kind.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with generation(self) as snapshot:
                made = kind.__call__(self, *args, **kwargs)
            if hasattr(made, "__dict__"):
                made.hotfix = snapshot
            return made

        def unfuse_lora(self, *args: Any, **kwargs: Any) -> Any:
            with ExitStack() as originals:  # it goes to the layers and past the model
                for model in models(self).values():
                    if board(model) is not None:
                        originals.enter_context(lifted(model))
                return super().unfuse_lora(*args, **kwargs)

    return _named(Generating, kind)


def _named(made: type, kind: type) -> type:
    """Under the name of its class: `save_pretrained` writes that name."""
    made.__name__, made.__qualname__, made.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    _PLAIN[made] = kind
    return made
