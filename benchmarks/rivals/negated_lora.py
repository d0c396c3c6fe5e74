r"""Negated LoRA: learn x_f by heart, then subtract what was learned.

    φ = argmin L(x_f) from the base,   ΔW = W_φ - W_0,   W = W_0 - strength · ΔW

With "full" training this is the negated task vector. There is no retain term; only `strength` holds back.

Source: Ilharco et al. 2023, arXiv:2212.04089 (task vectors); Zhang et al. 2023, arXiv:2306.14870 (LoRA). Both choose
the strength on held-out data, up to 1; steps, rate and batch for a diffusion model are not known to us (BATCH is
ours).
"""

from benchmarks.rivals.descent import descend, gradient
from benchmarks.rivals.problem import Problem, denoising_loss, forget_rows
from hotfix.shapes import Flat

__all__ = ["BATCH", "KNOB", "LR", "MODE", "STEPS", "SWEEP", "train"]

STEPS: int | None = None
LR: float | None = None
BATCH, MODE = 8, "lora"
STRENGTH = 1.0
KNOB, SWEEP = "strength", (0.1, 0.2, 0.4, 0.7, 1.0)


def train(problem: Problem, *, steps: int, lr: float, strength: float = STRENGTH, rows: int = BATCH) -> None:
    """Train in place. A step costs rows forward and backward.

    Args:
        problem: what to forget, on an open model.
        steps: steps of Adam.
        lr: its rate.
        strength: how much of what was learned is subtracted.
        rows: forget rows of a step.
    """

    def direction() -> Flat:
        return gradient(problem, denoising_loss(problem, forget_rows(problem, rows)))

    descend(problem, steps, lr, direction)
    problem.scale(-strength)
