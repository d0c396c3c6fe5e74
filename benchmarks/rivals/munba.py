r"""MUNBa: forget and retain bargain over every step, and take Nash's solution.

    max_d log ⟨g_f, d⟩ + log ⟨g_r, d⟩ over a ball,   d = w_f g_f + w_r g_r with  G w = 1/w,  G the Gram matrix
    for two players   w_i = 1 / (‖g_i‖ √(1 + cos)),   cos the cosine of g_f and g_r

So d is the bisector, of length √2 whatever the losses are, and agrees with both gradients. g_f is the gradient of what
is to fall: minus the denoising loss of x_f ("ascent"), or the endpoint loss towards x_s ("surrogate").

Source: Wu & Harandi 2024, arXiv:2411.15537. Which forget loss its diffusion models were given, its steps, rate and
batch are not known to us; the choice of two is the knob, the default the one that asks for no surrogate, and BATCH is
ours.
"""

from typing import Literal

import torch
from torch import Tensor

from benchmarks.rivals.descent import descend, gradient
from benchmarks.rivals.plain import surrogate_loss
from benchmarks.rivals.problem import Problem, denoising_loss, forget_rows, retain_rows
from hotfix.shapes import Flat

__all__ = ["BATCH", "KNOB", "LR", "MODE", "STEPS", "SWEEP", "train"]

STEPS: int | None = None
LR: float | None = None
BATCH, MODE = 8, "full"
FORGET: Literal["ascent", "surrogate"] = "ascent"
KNOB, SWEEP = "forget", ("ascent", "surrogate")


def nash_weights(g_f: Flat, g_r: Flat) -> tuple[Tensor, Tensor]:
    """(w_f, w_r), two scalars > 0 with w_i ⟨g_i, w_f g_f + w_r g_r⟩ = 1.

    Gradients that are exactly opposed leave nothing to bargain for: then both weights are large and the step near 0.

    Args:
        g_f: gradient of the forget loss, (P,).
        g_r: gradient of the retain loss, (P,).

    Source: Nash 1950; for gradients Navon et al. 2022, arXiv:2202.01017, Claim 3.1; two players in closed form as in
    arXiv:2411.15537, with √((1 - cos) / sin²) written as 1 / √(1 + cos).
    """
    tiny = torch.finfo(g_f.dtype).tiny
    n_f, n_r = g_f.norm().clamp_min(tiny), g_r.norm().clamp_min(tiny)
    cos = (g_f / n_f) @ (g_r / n_r)
    k = (1 + cos).clamp_min(torch.finfo(g_f.dtype).eps).rsqrt()
    return k / n_f, k / n_r


def train(
    problem: Problem,
    *,
    steps: int,
    lr: float,
    forget: Literal["ascent", "surrogate"] = FORGET,
    rows: int = BATCH,
) -> None:
    """Train in place. A step costs 2 x rows forward and backward.

    Args:
        problem: what to forget, on an open model.
        steps: steps of Adam.
        lr: its rate.
        forget: which loss of x_f is to fall.
        rows: forget rows of a step, and as many retain rows.
    """

    def direction() -> Flat:
        f = forget_rows(problem, rows)
        l_f = -denoising_loss(problem, f) if forget == "ascent" else surrogate_loss(problem, f)
        g_f = gradient(problem, l_f)
        g_r = gradient(problem, denoising_loss(problem, retain_rows(problem, rows)))
        w_f, w_r = nash_weights(g_f, g_r)
        return w_f * g_f + w_r * g_r

    descend(problem, steps, lr, direction)
