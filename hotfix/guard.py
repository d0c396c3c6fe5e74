"""Guard: whatever the host does to a model, its patches act, or the host's call raises and names them.

While something is on, a model and its pipeline are instances of a subclass of their own class, of the same name. There
a call notes the snapshot that it belongs to, compares that every patched layer is where it was and carries its hook,
and the few host calls are refused that would go past a patch.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from operator import is_
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from hotfix.beside import Beside, hooks, innermost
from hotfix.errors import BaseMismatch, HostError
from hotfix.snapshot import CHANGING, Board, Snapshot, pinned

BOARD = "_hotfix_board"
FUSED = "fused_projections"  # of queries, keys and values, in diffusers: no single one of them is asked any more


def board(model: nn.Module) -> Board | None:
    """The board of a model that something is on, or has been until the last generation ends."""
    return model.__dict__.get(BOARD)


def models(pipe: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline by component, each inside whatever compilers have put around it."""
    parts = getattr(pipe, "components", {})
    return {name: getattr(part, "_orig_mod", part) for name, part in parts.items() if isinstance(part, nn.Module)}


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
    for model in parts:
        check(model)
    try:
        with pinned(boards):
            yield " ".join(found.now().id for found in boards if found.now().order)
    finally:
        sweep(pipe, parts)


def switch(pipe: Any, wanted: Mapping[nn.Module, Snapshot], names: Mapping[nn.Module, str]) -> None:
    """Make `wanted` what is on, for all models at once or for none. New generations see it; running ones do not.

    Args:
        pipe: the pipeline of these models.
        wanted: the new snapshot of each model.
        names: of every layer that a snapshot speaks of, in its model.

    Raises:
        HostError: a layer is not reached any more. Whatever is raised, the previous snapshots are on.
    """
    for snapshot in wanted.values():
        for layer, product in snapshot.layers.items():
            weight = layer.get_parameter("weight")
            product.on(weight.device, _dtype(weight))  # what can run out of memory does it here
    with CHANGING:
        before = {model: found.current if (found := board(model)) else Snapshot() for model in wanted}
        try:
            for model, snapshot in wanted.items():
                _install(pipe, model, snapshot, names)
            for model, snapshot in wanted.items():
                _board(model).current = snapshot
            for model in wanted:
                check(model)
        except BaseException:
            for model, snapshot in before.items():
                if (found := board(model)) is not None:
                    found.current = snapshot
            sweep(pipe, list(wanted))
            raise
        sweep(pipe, list(wanted))


def _dtype(weight: Tensor) -> torch.dtype:
    """What the layer most likely computes in: not the 8 bits that it may be kept in."""
    return weight.dtype if weight.dtype.is_floating_point and weight.dtype.itemsize > 1 else torch.float32


def _board(model: nn.Module) -> Board:
    found = board(model)
    assert found is not None
    return found


def _install(pipe: Any, model: nn.Module, snapshot: Snapshot, names: Mapping[nn.Module, str]) -> None:
    """Hooks on every layer that the snapshot needs; they do nothing until it is current."""
    if board(model) is None:
        setattr(model, BOARD, Board(_running(model)))
        model.__class__ = _guarded(type(model))
    if type(pipe) not in _PLAIN:
        pipe.__class__ = _generating(type(pipe))
    hooked = {layer for layer, _, _ in hooks(model)}
    new = [layer for layer in snapshot.layers if layer not in hooked]
    for layer in new:
        layer.register_forward_hook(Beside(layer, names[layer], _board(model)))
    if new:
        _board(model).links = None
        if "torch._dynamo" in sys.modules:  # compiled graphs do not guard on hooks: they would go on without the patch
            torch._dynamo.reset()


def _running(model: nn.Module) -> dict[int, FrameType]:
    """Calls of pipelines with this model that other threads are in: they began before anything could be noted."""
    found = {}
    for thread, innermost_frame in sys._current_frames().items():
        frame: FrameType | None = innermost_frame
        while frame is not None:
            pipe = frame.f_locals.get("self") if frame.f_code.co_name == "__call__" else None
            if pipe is not model and any(part is model for part in models(pipe).values()):
                found[thread] = frame
            frame = frame.f_back
    return found


def sweep(pipe: Any, parts: Sequence[nn.Module]) -> None:
    """Take off what neither the current snapshot nor a running generation needs: after the last one, every trace."""
    with CHANGING:
        for model in parts:
            found = board(model)
            if found is None:
                continue
            needed = found.needed
            for layer, key, _ in list(hooks(model)):
                if layer not in needed:
                    del layer._forward_hooks[key]
                    found.links = None
            if not needed:
                delattr(model, BOARD)
                model.__class__ = _plain(type(model))
        if type(pipe) in _PLAIN and not any(board(model) for model in models(pipe).values()):
            pipe.__class__ = _plain(type(pipe))


def reached(model: nn.Module) -> set[nn.Module]:
    """Layers that carry our hook and are asked when the model runs, read from the model as it is now."""
    found = set()
    for layer, _, hook in hooks(model):
        try:
            there = innermost(model, hook.name) is layer
        except BaseMismatch:
            continue
        if there and not getattr(model.get_submodule(hook.name.rpartition(".")[0]), FUSED, False):
            found.add(layer)
    return found


def check(model: nn.Module) -> None:
    """Compare that every patched layer is reached. Costs some tens of microseconds where nothing has changed.

    Raises:
        HostError: one is not, and the patches that it carries would be lost.
    """
    found = board(model)
    if found is None or (found.links is not None and _hold(found.links)):
        return
    there, now = reached(model), found.current
    lost = [factors for factors, layers in now.carried().values() if not there.issuperset(layers)]
    if lost:
        names = ", ".join(f"{factors.name} {factors.version}" for factors in lost)
        raise HostError(
            f"the {type(model).__name__} no longer asks every layer that {names} acts on",
            hint="something replaced or fused its layers; undo that, or take the patch off and put it on again",
        )
    found.links = _links(model, [hook.name for layer, _, hook in hooks(model) if layer in there])


def _links(model: nn.Module, names: Sequence[str]) -> tuple[list[dict], list[Any], list[Any]]:
    """How every patched layer is reached: dictionaries, keys in them, and what is there now."""
    seen: dict[tuple[int, Any], tuple[dict, Any]] = {}
    for name in names:
        at, words = model, name.split(".")
        while words or "base_layer" in at._modules:
            word = words.pop(0) if words else "base_layer"
            seen[id(at._modules), word] = (at._modules, word)
            if FUSED in at.__dict__:
                seen[id(at.__dict__), FUSED] = (at.__dict__, FUSED)
            at = at._modules[word]  # type: ignore[assignment]
        key = next(key for key, hook in at._forward_hooks.items() if isinstance(hook, Beside))
        seen[id(at._forward_hooks), key] = (at._forward_hooks, key)
    dicts, keys = [within for within, _ in seen.values()], [key for _, key in seen.values()]
    return dicts, keys, list(map(dict.get, dicts, keys))


def _hold(links: tuple[list[dict], list[Any], list[Any]]) -> bool:
    dicts, keys, there = links
    return all(map(is_, map(dict.get, dicts, keys), there))


_PLAIN: dict[type, Any] = {}  # the class behind each of the two below


def _plain(kind: type) -> Any:
    return _PLAIN[kind]


@cache
def _guarded(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a model while something is on."""

    class Guarded(kind):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return super().__call__(*args, **kwargs)
            check(self)
            with pinned([_board(self)]):
                return super().__call__(*args, **kwargs)

        def fuse_qkv_projections(self, *args: Any, **kwargs: Any) -> None:
            """Refused: the fused layers are new ones, made of the weights without the patches."""
            on = ", ".join(
                f"{factors.name} {factors.version}" for factors, _ in _board(self).current.carried().values()
            )
            raise HostError(
                f"fuse_qkv_projections would put {on} out of action",
                hint="fuse first and build the patch on that, or do without: it only saves time",
            )

    return _named(Guarded, kind)


@cache
def _generating(kind: type) -> type:
    """The class of a pipeline while something is on."""

    class Generating(kind):
        @wraps(kind.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with generation(self) as snapshot:
                made = super().__call__(*args, **kwargs)
            if hasattr(made, "__dict__"):
                made.hotfix = snapshot
            return made

    return _named(Generating, kind)


def _named(made: type, kind: type) -> type:
    """Under the name of its class: `save_pretrained` writes that name."""
    made.__name__, made.__qualname__, made.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    _PLAIN[made] = kind
    return made
