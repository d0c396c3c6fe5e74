"""Folded: a stack's ΔW in the weights themselves, for no cost at run time, with the originals kept to go back to.

    W' = round(W + Σ B A)

computed in float32 from the kept original W at every change, so that errors never add up. Taking off copies W back;
nothing is ever subtracted. A folded model cannot be under two stacks at once: a change waits for running generations.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import mkstemp

import torch
from torch import Tensor, nn

from hotfix.errors import StackError
from hotfix.patch import A, B
from hotfix.snapshot import Product, Snapshot
from hotfix.weights import dense, refuse_unwritable

LEAST_SURVIVAL = 0.9  # of the change, measured after rounding to the dtype of the weights
SAMPLE = 256  # numbers of each weight that are compared to see that nobody else wrote to it
GIVE_UP = "undo that; or lose it: model.load_state_dict(model.state_dict()) brings back the base with the patches in it"


def delta(a: Tensor, b: Tensor) -> Tensor:
    """ΔW of a Linear (out, in) or a Conv2d (out, in, kh, kw) from its two factors, in float32."""
    return (b.float().flatten(1) @ a.float().flatten(1)).reshape(b.shape[0], *a.shape[1:])


def change(product: Product) -> Tensor:
    """ΔW of all patches on a layer, in float32 on the CPU: one product of the concatenated factors."""
    return delta(
        torch.cat([f.a.float() for f in product.stack]), torch.cat([f.b.float() for f in product.stack], dim=1)
    )


def rounded(weight: Tensor, change: Tensor, dtype: torch.dtype) -> tuple[Tensor, float, float]:
    """round(W + ΔW) on the CPU; ‖round(W + ΔW) - round(W) - ΔW‖², which is what was lost of ΔW; and ‖ΔW‖²."""
    w = weight.detach().float().cpu()
    new = (w + change).to(dtype)
    lost = new.float() - w.to(dtype).float() - change
    return new, float(lost.square().sum()), float(change.square().sum())


def survival(changes: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype) -> float:
    """The share of ΔW that is left after W + ΔW is rounded to `dtype`, over all (W, ΔW) pairs: 1 is all of it.

        1 - ‖round(W + ΔW) - round(W) - ΔW‖ / ‖ΔW‖,  at least 0

    A small patch drowns in bfloat16: the step between neighbouring numbers is 2^-8 of the weight.
    """
    return _share(rounded(weight, change, dtype)[1:] for weight, change in changes)


def survivals(layers: Mapping[str, nn.Linear | nn.Conv2d], factors: Mapping[str, Tensor]) -> dict[str, float]:
    """`survival` in both half precisions, for a manifest. The change of one layer is in memory at a time.

    Args:
        layers: what the factors act on, by name.
        factors: `NAME.lora_A.weight` and `NAME.lora_B.weight` for every one of them.
    """

    def changes() -> Iterator[tuple[Tensor, Tensor]]:
        for name, layer in layers.items():
            yield dense(layer), delta(factors[name + A], factors[name + B])

    return {
        str(dtype).removeprefix("torch."): round(survival(changes(), dtype), 4)
        for dtype in (torch.bfloat16, torch.float16)
    }


def _share(parts: Iterable[tuple[float, float]]) -> float:
    """What is left, from the squared norms of what was lost and of the whole."""
    lost, whole = 0.0, 0.0
    for one, of in parts:
        lost, whole = lost + one, whole + of
    return max(0.0, 1 - (lost / whole) ** 0.5) if whole else 1.0


def refuse_drowning(left: float, dtype: torch.dtype) -> None:
    """Raise StackError where less than `LEAST_SURVIVAL` of a change would be left."""
    if left < LEAST_SURVIVAL:
        raise StackError(
            f"only {left:.0%} of the change would survive in {str(dtype).removeprefix('torch.')}",
            wanted=f"at least {LEAST_SURVIVAL:.0%}",
            hint="fold into float32 weights, or put the stack on beside them instead",
        )


class Kept:
    """The originals of every layer that a stack was folded into, in host memory or in files of a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.originals: dict[nn.Module, Tensor] = {}
        self.written: dict[nn.Module, Tensor] = {}  # a sample of each folded weight
        self.torn = False  # a change was broken off: some weights are of one snapshot and some of another

    def fold(self, snapshot: Snapshot) -> None:
        """Write a snapshot into the weights; layers that it does not speak of get their originals back.

        Raises:
            StackError: too little of the change would survive, or the weights are quantised or split up. Nothing was
                written; whatever else is raised, that holds unless `torn` says otherwise.
        """
        refuse_unwritable(snapshot.layers)
        folded: dict[nn.Module, Tensor] = {}
        norms: dict[torch.dtype, list[tuple[float, float]]] = {}
        for layer, product in snapshot.layers.items():  # one pass: nothing is written before all is known to survive
            original = self.originals.get(layer, layer.get_parameter("weight"))
            folded[layer], lost, whole = rounded(original, change(product), original.dtype)
            norms.setdefault(original.dtype, []).append((lost, whole))
        for dtype, parts in norms.items():
            refuse_drowning(_share(parts), dtype)
        new = [layer for layer in folded if layer not in self.originals]
        copies = {layer: self._copy(layer.get_parameter("weight").detach()) for layer in new}
        self.torn = True
        self.originals |= copies
        for layer in [layer for layer in self.originals if layer not in folded]:
            self._write(layer, self.originals[layer])
            del self.originals[layer]
            self.written.pop(layer, None)
        for layer, weight in folded.items():
            self._write(layer, weight)
        self.torn = False

    def _copy(self, weight: Tensor) -> Tensor:
        if self.folder is None:
            return weight.cpu().clone()
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = mkstemp(dir=self.folder)
        os.close(descriptor)
        on_disk = torch.from_file(name, shared=True, size=weight.numel(), dtype=weight.dtype).view(weight.shape)
        with contextlib.suppress(OSError):  # mapped, it needs no name any more, and is gone with the process
            os.unlink(name)
        return on_disk.copy_(weight)

    def rebase(self, snapshot: Snapshot) -> None:
        """Go on in the dtype that the host has cast the weights to: W cast alike, and folded into anew.

        Raises:
            StackError: too little of the change would survive in it. Then the weights are the cast originals.
        """
        cast = [layer for layer, w in self.originals.items() if w.dtype != layer.get_parameter("weight").dtype]
        cast = [layer for layer in cast if not layer.get_parameter("weight").is_meta]
        for layer in cast:
            self.originals[layer] = self.originals[layer].to(layer.get_parameter("weight").dtype)
            self._write(layer, self.originals[layer])
        if cast:
            self.fold(snapshot)

    @torch.no_grad()
    def _write(self, layer: nn.Module, new: Tensor) -> None:
        weight = layer.get_parameter("weight")
        if weight.is_meta:
            return  # what comes back from there is loaded, not written here
        weight.copy_(new)
        self.written[layer] = _sample(new)

    def foreign(self) -> set[nn.Module]:
        """Layers whose weights somebody else has written to, or has cast to where too little of the change is left."""
        lost, cast = set(), {}
        written = dict(self.written)  # which another thread may be changing
        there_now = _samples([layer.get_parameter("weight") for layer in written])
        for (layer, sample), now in zip(written.items(), there_now, strict=True):
            if now.is_meta or not torch.equal(now, sample.to(now.dtype)):
                lost.add(layer)
            elif now.dtype != sample.dtype:
                w = _sample(self.originals[layer]).float()
                cast[layer] = (w, sample.float() - w)
        for dtype in {layer.get_parameter("weight").dtype for layer in cast}:
            there = [layer for layer in cast if layer.get_parameter("weight").dtype == dtype]
            if survival((cast[layer] for layer in there), dtype) < LEAST_SURVIVAL:
                lost.update(there)
        return lost

    def marks(self) -> list[tuple[int, torch.dtype]]:
        """What changes when somebody casts a weight, or writes to it but not through `.data`; cheap at every step."""
        return [((w := layer.weight)._version, w.dtype) for layer in list(self.written)]


def _sample(weight: Tensor) -> Tensor:
    (sample,) = _samples([weight])
    return sample


def _samples(weights: Sequence[Tensor]) -> list[Tensor]:
    """Of each weight, in host memory: one transfer for every device and dtype, because this is done for all at once."""
    flat = [weight.detach().flatten() for weight in weights]
    found = [one[:: max(1, one.numel() // SAMPLE)] for one in flat]
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, sample in enumerate(found):
        if not sample.is_meta:
            alike.setdefault((sample.device, sample.dtype), []).append(i)
    for places in alike.values():
        together = torch.cat([found[i] for i in places]).cpu()
        for i, sample in zip(places, together.split([len(found[i]) for i in places]), strict=True):
            found[i] = sample
    return found
