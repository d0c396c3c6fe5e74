"""What a layer multiplies with, however its weight is kept: cast, or quantised by bitsandbytes or torchao."""

import torch
from torch import Tensor, nn

from hotfix.errors import BaseMismatch


def shape(layer: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    """Shape of the matrix or kernel; a quantised weight may be stored in another."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return tuple(layer.weight.shape)


def dense(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """The weight in float32 on the CPU; of a quantised one the value that it stands for.

    Raises:
        BaseMismatch: the weight is not in memory.
    """
    weight: Tensor = layer.weight
    if weight.is_meta:
        raise BaseMismatch("the weights are not in memory", hint="put patches on before the pipeline is offloaded")
    if type(weight).__name__ in ("Int8Params", "Params4bit"):
        from diffusers.quantizers.bitsandbytes.utils import dequantize_bnb_weight

        weight = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))
    elif type(weight).__module__.startswith("torchao."):
        weight = weight.dequantize()
    return weight.detach().to("cpu", torch.float32)
