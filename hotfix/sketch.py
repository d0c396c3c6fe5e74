"""Sketch: recognise a base by its weights, in any dtype, from one number per layer.

A loaded pipeline does not know its commit, so "is this the base that the patch was made for?" has to be answered
from the weights. ⟨W, R⟩/‖W‖ with a fixed ±1 matrix R moves by about the relative error of W: 1e-3 for a half-precision
copy, of order 1 for another model.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = 16  # enough to recognise a model; a sketch of more only makes the manifest longer
PIECE = 1 << 18  # numbers at a time
SAME = 0.02  # largest root-mean-square difference that still counts as the same weights
RELATED = 0.5  # and as weights made from them; between models of other training it is about 1.4


# The eight signs that a byte stands for, its highest bit first.
_EIGHT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1


def signs(layer: str, count: int) -> Iterator["Tensor"]:
    """The ±1 vector of a layer in pieces, from its name alone. RandomState's stream is frozen by NumPy for good."""
    import torch  # which comparing two sketches does without

    seed = int.from_bytes(hashlib.sha256(layer.encode()).digest()[:4], "little")
    drawn = np.frombuffer(np.random.RandomState(seed).bytes(-(-count // 8)), dtype=np.uint8)
    for first in range(0, count, PIECE):
        yield torch.from_numpy(
            np.take(_EIGHT, drawn[first // 8 : (first + PIECE) // 8], axis=0).reshape(-1)[: count - first]
        )


def spread(layers: Iterable[str]) -> list[str]:
    """At most 16 of these, evenly over the sorted names."""
    names = sorted(layers)
    return [names[i * len(names) // min(LAYERS, len(names))] for i in range(min(LAYERS, len(names)))]


def sketch(weights: Mapping[str, "Tensor"]) -> dict[str, float]:
    """One number per layer, for at most 16 layers spread evenly over the sorted names.

    Args:
        weights: layer name to weight matrix, any shape, any floating dtype, any device.
    """
    return {name: round(_number(weights[name].detach().flatten(), name), 6) for name in spread(weights)}


def _number(w: "Tensor", layer: str) -> float:
    """⟨W, R⟩/‖W‖, in pieces that stay in the processor's cache."""
    product = squares = 0.0
    for first, r in zip(range(0, w.numel(), PIECE), signs(layer, w.numel()), strict=True):
        part = w[first : first + PIECE].float().cpu()
        product += float(part @ r)
        squares += float(part @ part)
    return product / max(squares**0.5, 1e-30)


def distance(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Root-mean-square difference over the layers of `a`; infinite when `b` lacks one of them."""
    if not set(a) <= set(b):
        return float("inf")
    return float(np.sqrt(np.mean([(a[name] - b[name]) ** 2 for name in a])))
