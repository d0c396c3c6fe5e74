r"""Input directions that a patch does not read.

A patch acts on a layer as ΔW x = B A x. Where every row of A is orthogonal to x, that is nothing, whatever B is. Two
kinds of directions can be shut so: those in which retained pictures reach the layer (`train.surgery = "subspace"`), and
those that the patches beneath read (`train.orthogonal_to_stack`). The condition is linear in A, so it holds for the
finished patch if it holds for the first A and for every step.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hotfix import beside
from hotfix.case import Case
from hotfix.denoiser import Denoiser
from hotfix.lora import Adapter
from hotfix.patch import A
from hotfix.project import leading, without
from hotfix.rows import Bank, retain_states
from hotfix.shapes import Flat
from hotfix.stack import Stack
from hotfix.weights import shape

PASSES, STATES = 8, 8  # forward passes over retained states, and states in each
INPUTS = 1024  # input vectors kept of every layer, drawn evenly from the passes

Directions = Mapping[str, Tensor]  # layer -> rows (K, D) that span them


@dataclass(frozen=True)
class Shut:
    """What is shut, as a projection of the vector of all factors."""

    parts: tuple[tuple[slice, Tensor], ...]  # where an A lies, and orthonormal directions (K, D) it must not have
    readable: float  # share of all input directions of the adapted layers that are left, in [0, 1]

    def __call__(self, vector: Flat) -> Flat:
        """Take the directions out of every A, or out of its gradient or step; without any, the vector itself."""
        if not self.parts:
            return vector
        out = vector.clone()
        for place, directions in self.parts:
            out[place] = without(vector[place].view(-1, directions.shape[1]), directions).flatten()
        return out


def closed(adapter: Adapter, *kinds: Directions) -> Shut:
    """Shut the span of all these directions in the factors of an adapter, layer by layer."""
    parts, left, whole = [], 0, 0
    for name, place in adapter.places().items():
        layer = beside.innermost(adapter.model, name)
        wide = math.prod(shape(layer)[1:])
        rows = [kind[name].cpu() for kind in kinds if name in kind]
        spanned = leading(torch.cat(rows), 1.0) if rows else torch.empty(0, wide)
        if len(spanned):
            parts.append((place, spanned.to(layer.weight.device, torch.float32)))
        left, whole = left + wide - len(spanned), whole + wide
    return Shut(tuple(parts), left / whole)


@torch.no_grad()
def retained(
    denoiser: Denoiser,
    case: Case,
    adapter: Adapter,
    bank: Bank,
    share: float,
    seed: int,
) -> Directions:
    """For every adapted layer, the directions that hold `share` of the energy of its inputs from retained states.

    Args:
        denoiser: of the pipeline whose denoiser carries `adapter`.
        case: what must stay.
        adapter: names the layers; it is off meanwhile.
        bank: what retained states are drawn from.
        share: in (0, 1).
        seed: of the states, and of which of their inputs are kept.

    Source: the representation matrix of GPM, Saha et al. 2021, arXiv:2103.09762; PGU, arXiv:2312.04095.
    """
    generator = torch.Generator().manual_seed(seed)
    seen: dict[str, list[Tensor]] = {name: [] for name in adapter.places()}

    def keep(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = inputs(layer, args[0])
        pick = torch.randperm(len(x), generator=generator)[: INPUTS // PASSES]
        seen[name].append(x[pick.to(x.device)].float().cpu())

    hooks = [
        beside.innermost(adapter.model, name).register_forward_pre_hook(
            lambda layer, args, name=name: keep(name, layer, args)
        )
        for name in seen
    ]
    try:
        with adapter.off():
            for _ in range(PASSES):
                denoiser.predict(*retain_states(denoiser, case, bank, STATES, generator))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: leading(torch.cat(found), share) for name, found in seen.items() if found}


def read_by(stack: Stack, component: str) -> Directions:
    """What the patches of a stack read of each layer's input: the rows of their A, (R, D).

    Source: O-LoRA, Wang et al. 2023, arXiv:2310.14152, penalises A Aᵀ_below; here it is 0.
    """
    read: dict[str, list[Tensor]] = {}
    for patch in stack.patches:
        for name in patch.layers:
            if name.startswith(f"{component}."):
                read.setdefault(name.removeprefix(f"{component}."), []).append(patch.tensors[name + A].flatten(1))
    return {name: torch.cat(rows) for name, rows in read.items()}


def seed_above(stack: Stack, seed: int) -> int:
    """Another seed for every stack: patches of one seed begin with one A, of which nothing would be left above."""
    drawn = hashlib.sha256("".join([str(seed), *(patch.manifest.digest for patch in stack.patches)]).encode())
    return int.from_bytes(drawn.digest()[:4])


def inputs(layer: nn.Module, x: Tensor) -> Tensor:
    """The vectors that a layer multiplies its weight with, (N, D): rows of a Linear, unfolded patches of a Conv2d."""
    if isinstance(layer, nn.Conv2d):
        return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT.flatten(0, 1)
    return x.flatten(0, -2)
