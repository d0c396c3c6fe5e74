"""What a layer multiplies with, however its weight is kept: cast, split up, or quantised by bitsandbytes or torchao."""

from collections.abc import Iterable, Mapping
from typing import TypeGuard

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hotfix.errors import BaseMismatch, StackError
from hotfix.sketch import sketch, spread


def patchable(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether a patch can act on it: a matrix, or a convolution that two smaller ones can stand beside."""
    if isinstance(layer, nn.Conv2d):
        return (layer.groups, layer.dilation, layer.padding_mode) == (1, (1, 1), "zeros")
    return isinstance(layer, nn.Linear)


def shape(layer: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    """Shape of the matrix or kernel; a quantised weight may be stored in another."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return tuple(layer.weight.shape)


def quantised(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether the weight is kept in fewer bits than it stands for; some kinds say that they are float32."""
    weight: Tensor = layer.weight
    few = not weight.dtype.is_floating_point or weight.dtype.itemsize < 2
    return few or type(weight.data).__module__.startswith("torchao.")


def refuse_unwritable(layers: Iterable[nn.Linear | nn.Conv2d]) -> None:
    """Raise StackError where a change would have to be written into weights that are quantised, or split up."""
    for layer in layers:
        if quantised(layer):
            raise StackError("the weights are quantised", hint="put the stack on beside them instead")
        if hasattr(layer.weight, "full_tensor"):
            raise StackError("processes share the weights out", hint="put the stack on beside them instead")


def dense(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """The weight as a plain floating-point tensor; of a quantised one the value that it stands for.

    One that processes share out is gathered: all of them have to ask.

    Raises:
        BaseMismatch: the weight is not in memory.
    """
    weight: Tensor = layer.weight
    if weight.is_meta:
        raise BaseMismatch("the weights are not in memory", hint="put patches on before the pipeline is offloaded")
    if type(weight).__name__ in ("Int8Params", "Params4bit"):
        from diffusers.quantizers.bitsandbytes.utils import dequantize_bnb_weight

        weight = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))
    elif type(weight.data).__module__.startswith("torchao."):
        weight = weight.dequantize()
    elif hasattr(weight, "full_tensor"):
        weight = weight.full_tensor()
    return weight.detach()


def sketched(layers: Mapping[str, nn.Linear | nn.Conv2d]) -> dict[str, float]:
    """`hotfix.sketch.sketch` of layers by name; of quantised ones by the values that they stand for."""
    return sketch({name: dense(layers[name]) for name in spread(layers)})


def stored(tensor: Tensor) -> dict[int, int]:
    """Where a tensor lies in memory, and bytes there; torchao keeps a quantised one as several, FSDP a part of one."""
    if is_traceable_wrapper_subclass(tensor):
        parts = [part for name in tensor.__tensor_flatten__()[0] if isinstance(part := getattr(tensor, name), Tensor)]
        return {place: size for part in parts for place, size in stored(part).items()}
    storage = tensor.untyped_storage()
    return {storage.data_ptr(): storage.nbytes()}
