"""Beside: ΔW·x computed next to an untouched weight, by one forward hook on the innermost layer.

The base layer, its Parameter, its bytes and its `state_dict` key stay as they are, so taking a patch off is exact by
construction. The hook sits below every adapter wrapper, where no host call that loads, switches or scales adapters
reaches it. The hooks are the only record of what is on: nothing is remembered elsewhere.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hotfix.errors import BaseMismatch


@dataclass(frozen=True)
class Factors:
    """The part of one patch that acts on one layer."""

    name: str
    version: str
    id: str
    layers: int  # how many layers the patch has in all: fewer hooks than that, and it is not whole
    a: Tensor  # (r, in) or (r, in, kh, kw)
    b: Tensor  # (out, r) or (out, r, 1, 1)


class Beside:
    """A forward hook that adds the effect of an ordered stack of patches: B_1 A_1 x + B_2 A_2 x + …

    The factors of the stack are concatenated, never summed: A = [A_1; A_2], B = [B_1 B_2], which is exact.
    """

    def __init__(self, layer: nn.Module, stack: tuple[Factors, ...]) -> None:
        self.stack = stack
        weight = layer.weight
        self.a = torch.cat([f.a for f in stack], dim=0).to(weight.device, weight.dtype)
        self.b = torch.cat([f.b for f in stack], dim=1).to(weight.device, weight.dtype)

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """Return the layer's output plus the effect of the stack."""
        x = args[0]
        a, b = self.a.to(x.device, x.dtype), self.b.to(x.device, x.dtype)
        if isinstance(layer, nn.Conv2d):
            return out + F.conv2d(F.conv2d(x, a, None, layer.stride, layer.padding), b)
        return out + F.linear(F.linear(x, a), b)


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
    if isinstance(layer, nn.Linear):
        return layer
    if isinstance(layer, nn.Conv2d) and (layer.groups, layer.dilation, layer.padding_mode) == (1, (1, 1), "zeros"):
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


def present(model: nn.Module) -> dict[str, tuple[Factors, int]]:
    """Patches found on a model, in stack order: id to (one of its factors, number of layers that carry it)."""
    found: dict[str, tuple[Factors, int]] = {}
    for _, _, hook in hooks(model):
        for factors in hook.stack:
            count = found[factors.id][1] if factors.id in found else 0
            found[factors.id] = (factors, count + 1)
    return found


def replace(model: nn.Module, wanted: Mapping[nn.Module, tuple[Factors, ...]]) -> None:
    """Make `wanted` the hooks of a model, all or nothing.

    Everything that can fail is done before the first layer is touched; should registering fail half-way, the previous
    hooks are put back and the error goes on.
    """
    new = {layer: Beside(layer, stack) for layer, stack in wanted.items() if stack}
    old = list(hooks(model))
    added = []
    try:
        for layer, hook in new.items():
            added.append(layer.register_forward_hook(hook))
        for layer, key, _ in old:
            del layer._forward_hooks[key]
    except BaseException:
        for handle in added:
            handle.remove()
        for layer, key, hook in old:
            layer._forward_hooks[key] = hook
        raise
    if is_compiled(model):
        torch._dynamo.reset()  # compiled graphs do not guard on hooks: they would go on without the patch


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, or a part of it, runs compiled graphs."""
    return any(m._compiled_call_impl is not None or type(m).__name__ == "OptimizedModule" for m in model.modules())
