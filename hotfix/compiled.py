"""The blocks that a network repeats, compiled for the length of a build (regional compilation)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hotfix.errors import RecipeError

# A block has a graph for every way it is asked: with and without gradient, factors on and off, few rows and many. At
# torch's own limit of 8 it would go on without the compiler, and say so on a screen that nobody watches.
GRAPHS = 64


def check(backend: str) -> None:
    """Raise RecipeError where there is no such backend of `torch.compile`; "" compiles nothing."""
    if backend and backend not in torch.compiler.list_backends(()):  # those for debugging, too
        known = " | ".join(torch.compiler.list_backends())
        raise RecipeError(
            f"train.compile = {backend!r} is no backend of torch.compile", wanted=known, hint='"inductor"'
        )


@contextmanager
def compiled(model: nn.Module, backend: str) -> Iterator[None]:
    """Compile every block, and take the graphs off again: all blocks of a kind share theirs.

    Args:
        model: its blocks are those that diffusers says it repeats, or else that it says cannot be split up.
        backend: of `torch.compile`; "" compiles nothing.

    Raises:
        RecipeError: no such backend, diffusers names no blocks of this network, or the backend fails: "inductor" takes
            a C++ compiler.
    """
    if not backend:
        yield
        return
    check(backend)
    names = getattr(model, "_repeated_blocks", None) or getattr(model, "_no_split_modules", None) or ()
    blocks = [part for part in model.modules() if type(part).__name__ in names]
    if not blocks:
        raise RecipeError(
            f"train.compile: diffusers names no blocks of a {type(model).__name__}", hint="leave out train.compile"
        )
    before = [block._compiled_call_impl for block in blocks]
    try:
        with torch._dynamo.config.patch(recompile_limit=GRAPHS):
            for block in blocks:
                block.compile(backend=backend)
            yield
    except torch._dynamo.exc.BackendCompilerFailed as error:
        reason = str(error.inner_exception).strip().splitlines()[0]
        raise RecipeError(
            f"train.compile = {backend!r} failed: {reason}", hint="what it needs, or leave out train.compile"
        ) from error
    finally:
        for block, call in zip(blocks, before, strict=True):
            block._compiled_call_impl = call
