"""One rank for every layer: readers of plain LoRA files know only one, or misread the strength of the others."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hotfix.patch import A, B


def even(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same ΔW, with the factors of every layer filled up with zeros to the largest rank."""
    rank = max(tensor.shape[0] for key, tensor in factors.items() if key.endswith(A))
    filled: dict[str, Tensor] = {}
    for layer in [key.removesuffix(A) for key in factors if key.endswith(A)]:
        a, b = factors[layer + A], factors[layer + B]
        zeros = a.new_zeros(rank - a.shape[0], *a.shape[1:]), b.new_zeros(b.shape[0], rank - b.shape[1], *b.shape[2:])
        filled |= {layer + A: torch.cat([a, zeros[0]]), layer + B: torch.cat([b, zeros[1]], dim=1)}
    return filled
