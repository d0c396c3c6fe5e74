"""Beside: ΔW·x computed next to an untouched weight, by one forward hook on the innermost layer.

The base layer, its Parameter, its bytes and its `state_dict` key stay as they are, so taking a patch off is exact by
construction. The hook sits below every adapter wrapper, where no host call that loads, switches or scales adapters
reaches it (docs/stack.md compares the alternatives).
"""

from collections.abc import Iterator
from copy import deepcopy
from itertools import count
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hotfix.board import Board
from hotfix.errors import BaseMismatch
from hotfix.weights import patchable

_numbers = count()
_hooks: "WeakValueDictionary[int, Beside]" = WeakValueDictionary()  # for compiled graphs, which know a hook by number


class Beside:
    """A forward hook that adds what the snapshot of the running generation has for its layer."""

    def __init__(self, layer: nn.Module, board: Board) -> None:
        self.layer, self.board = layer, board
        number = next(_numbers)
        _hooks[number] = self
        # A tensor, because a graph that is compiled for one block is run for its siblings, and reads theirs.
        self.number = torch.tensor(number)

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """The layer's output plus the effect of the stack."""
        if torch.compiler.is_compiling():
            return _effect(args[0], out, self.number)
        return self.effect(args[0], out)

    def effect(self, x: Tensor, out: Tensor) -> Tensor:
        """`out` + B A `x`; `out` itself where the stack has nothing for this layer."""
        product = self.board.now().layers.get(self.layer)
        if product is None:
            return out
        a, b = product.on(x.device, out.dtype)
        x = x.to(out.dtype)
        if isinstance(self.layer, nn.Conv2d):
            return out + F.conv2d(F.conv2d(x, a, None, self.layer.stride, self.layer.padding), b)
        low = F.linear(x, a)
        return torch.addmm(out.reshape(-1, out.shape[-1]), low.reshape(-1, low.shape[-1]), b).view_as(out)

    def backward(self, x: Tensor, grad: Tensor) -> Tensor:
        """What comes back to `x` through the effect, for `grad` of the layer's output."""
        product = self.board.now().layers.get(self.layer)
        if product is None:
            return torch.zeros_like(x)
        a, b = product.on(x.device, grad.dtype)
        if isinstance(self.layer, nn.Conv2d):
            here = self.layer.stride, self.layer.padding
            low = torch.nn.grad.conv2d_input((len(x), len(a), *grad.shape[2:]), b, grad)
            return torch.nn.grad.conv2d_input(x.shape, a, low, *here).to(x.dtype)
        return F.linear(F.linear(grad, b), a.T).to(x.dtype)

    def __deepcopy__(self, memo: dict) -> Self:
        """A copy of a model has hooks with numbers of their own."""
        return type(self)(deepcopy(self.layer, memo), deepcopy(self.board, memo))


@torch.library.custom_op("hotfix::beside", mutates_args=())
def _effect(x: Tensor, out: Tensor, number: Tensor) -> Tensor:
    """The effect as one opaque step of a compiled graph: the stack is looked up when it runs, not when it is traced."""
    hook = _hooks.get(int(number))
    changed = out if hook is None else hook.effect(x, out)
    return changed.clone() if changed is out else changed


@_effect.register_fake
def _(x: Tensor, out: Tensor, number: Tensor) -> Tensor:
    return torch.empty_like(out)


@torch.library.custom_op("hotfix::beside_backward", mutates_args=())
def _backward(x: Tensor, grad: Tensor, number: Tensor) -> Tensor:
    """What comes back to `x` through the effect, as opaque to a graph as the effect itself."""
    hook = _hooks.get(int(number))
    return torch.zeros_like(x) if hook is None else hook.backward(x, grad)


@_backward.register_fake
def _(x: Tensor, grad: Tensor, number: Tensor) -> Tensor:
    return torch.empty_like(x)


def _noted(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    x, _, number = inputs
    ctx.save_for_backward(x, number)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
    x, number = ctx.saved_tensors
    return _backward(x, grad, number) if ctx.needs_input_grad[0] else None, grad, None


_effect.register_autograd(_gradients, setup_context=_noted)


def innermost(model: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    """The layer itself, inside whatever adapters a host has put around it.

    Raises:
        BaseMismatch: the model has no such layer, or it is not one that a patch can act on.
    """
    try:
        layer = model.get_submodule(name)
    except AttributeError as error:
        raise BaseMismatch(
            f"the {type(model).__name__} has no layer {name}", hint="the patch was made for another architecture"
        ) from error
    while isinstance(inner := getattr(layer, "base_layer", None), nn.Module):
        layer = inner
    if patchable(layer):
        return layer
    raise BaseMismatch(
        f"{name} is a {type(layer).__name__}", wanted="a Linear or a plain Conv2d", hint="another architecture"
    )


def hooks(model: nn.Module) -> Iterator[tuple[nn.Module, int, Beside]]:
    """Every hook of ours on a model, read from the model: the layer, the hook's key, the hook."""
    for layer in model.modules():
        for key, hook in list(layer._forward_hooks.items()):
            if isinstance(hook, Beside):
                yield layer, key, hook
