"""Snapshot: what is on a model at one moment. A change is another snapshot."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Factors:
    """The part of one patch that acts on one layer."""

    name: str
    version: str
    id: str
    layers: int  # how many layers the patch has in all: fewer than that, and it is not whole
    related: bool  # on weights that are only like those it was made for
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
            with torch.inference_mode(False):  # they are kept, and a later gradient may need them
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

    @property
    def names(self) -> str:
        """Of the patches, with their versions, for people."""
        return ", ".join(f"{factors.name} {factors.version}" for factors, _ in self.carried().values())

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

    def sorted(self, order: Sequence[str]) -> Self:
        """The same patches in another order; those that it does not name are above the others, as they are."""
        place = {id_: number for number, id_ in enumerate(order)}

        def at(id_: str) -> int:
            return place.get(id_, len(place))

        layers = {
            layer: Product(sorted(product.stack, key=lambda f: at(f.id))) for layer, product in self.layers.items()
        }
        return type(self)(tuple(sorted(self.order, key=at)), layers)
