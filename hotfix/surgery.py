"""A step's gradient, made of the forget and the retain gradient by the rule that the recipe names."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hotfix.project import orthogonal, per_tensor, project
from hotfix.recipe import SurgeryKind
from hotfix.shapes import Flat


@dataclass(frozen=True)
class Retained:
    """What the retain gradient has been. One batch of it is too noisy to project on."""

    mean: Flat  # exponential
    last: Tensor  # (K, P), newest first; rows of zeros at the beginning; K = 0 unless a rule looks at them

    @classmethod
    def none(cls, like: Flat, k: int) -> "Retained":
        """Nothing seen yet."""
        return cls(torch.zeros_like(like), like.new_zeros(k, len(like)))

    def add(self, g_r: Flat, ema: float) -> None:
        """Take in one more, in place; `ema` is the share that the mean keeps of itself."""
        self.mean.lerp_(g_r, 1 - ema)
        self.last.copy_(torch.cat([g_r[None], self.last])[: len(self.last)])


def strictness(weight: float, dual_rate: float) -> float:
    """κ, in [0, 1]: how much of a rule is applied.

    Where the retain weight λ is the multiplier of drift <= budget, min(1, λ): a constraint that does not bind need not
    stand in the way of what the target still lacks. Where it is a number that somebody chose, or 0 and stays so, 1.
    """
    return min(1.0, weight) if dual_rate and weight else 1.0


def combine(
    kind: SurgeryKind, g_f: Flat, g_r: Flat, seen: Retained, sizes: Sequence[int], weight: float, kappa: float
) -> Flat:
    """The gradient to step along, (P,).

    Args:
        kind: the rule, as in the recipe.
        g_f: forget gradient.
        g_r: retain gradient of this step.
        seen: what the retain gradient has been, this step included.
        sizes: numbers of elements of the tensors that P is made of.
        weight: of the retain gradient.
        kappa: how much of the rule is applied, in [0, 1].
    """
    free = (weight * g_r).add_(g_f)
    match kind:
        case "one-sided":
            g_f = project(g_f, onto=seen.mean)
        case "two-sided":
            g_f, g_r = project(g_f, onto=seen.mean), project(g_r, onto=g_f)
        case "per-tensor":
            g_f = per_tensor(g_f, seen.mean, sizes)
        case "orthogonal":
            g_f = orthogonal(g_f, to=seen.last)
        case "subspace" | "none":  # a subspace is shut in the factors themselves: hotfix/subspace.py
            pass
    return free.lerp_((weight * g_r).add_(g_f), kappa)  # in place: a plan counts the vectors that are held
