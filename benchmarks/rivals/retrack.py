r"""ReTrack: head for what a model that never saw x_f would predict, the posterior mean over the nearest x_r.

    x*(x_t) = Σ_i w_i x_i,   w_i ∝ exp(-‖x_t - a x_i‖² / 2s²) over the k retained pictures where this is largest
    ‖ε_θ(x_t) - (x_t - a x*)/s‖²,   x_t noised from x_f

Source: arXiv:2509.13007, whose abstract gives the idea (importance sampling of the loss without x_f, dominant terms
only, k nearest neighbours). The formula is our derivation, with weights that add up to 1; its exact loss, its k,
steps, rate and batch are not known to us, nor whether it adds a retain term. K and BATCH are ours, and `weight` = 0
adds none.
"""

import torch
from torch import Tensor

from benchmarks.rivals.descent import descend, gradient
from benchmarks.rivals.prediction import towards
from benchmarks.rivals.problem import Problem, denoising_loss, error, forget_rows, retain_rows
from hotfix.shapes import Flat, Latents

__all__ = ["BATCH", "KNOB", "LR", "MODE", "STEPS", "SWEEP", "train"]

STEPS: int | None = None
LR: float | None = None
BATCH, MODE = 8, "full"
K = 10
KNOB, SWEEP = "k", (1, 3, 10, 30, 100)


def posterior_weights(x_t: Latents, x_r: Latents, a: Tensor, s: Tensor, k: int) -> Tensor:
    """Which retained picture a noisy state came from, (B, R): rows add up to 1, at most k entries are not 0.

    Args:
        x_t: noisy states, (B, C, H, W).
        x_r: retained pictures, (R, C, H, W), each as likely as the others.
        a: signal scale of each row, (B, 1, 1, 1).
        s: noise scale, same shape.
        k: neighbours that count.

    Source: arXiv:2509.13007, as derived in the module's docstring.
    """
    x_t, x_r, a, s = (v.double().flatten(1) for v in (x_t, x_r, a, s))  # at low noise 1/s² eats float32's digits
    log_w = (a * (x_t @ x_r.T) - a**2 * x_r.square().sum(dim=1) / 2) / s**2  # ‖x_t‖² is the same for all
    top = log_w.topk(min(k, len(x_r)), dim=1)
    return torch.zeros_like(log_w).scatter(1, top.indices, top.values.softmax(dim=1))


def posterior_mean(x_t: Latents, x_r: Latents, a: Tensor, s: Tensor, k: int) -> Latents:
    """x*(x_t), (B, C, H, W): the mean of the retained pictures under `posterior_weights`, in their convex hull."""
    w = posterior_weights(x_t, x_r, a, s, k)
    return (w @ x_r.double().flatten(1)).view_as(x_t).to(x_r.dtype)


def train(problem: Problem, *, steps: int, lr: float, k: int = K, rows: int = BATCH, weight: float = 0.0) -> None:
    """Train in place. A step costs rows forward and backward, twice that with a retain term.

    Args:
        problem: what to forget, on an open model.
        steps: steps of Adam.
        lr: its rate.
        k: neighbours that the endpoint is a mean of.
        rows: forget rows of a step, and as many retain rows if there are any.
        weight: of the retained pictures' denoising loss.
    """

    def direction() -> Flat:
        f = forget_rows(problem, rows)
        a, s = problem.denoiser.schedule(f.t)
        endpoint = posterior_mean(f.x_t, problem.x_r, a, s, k)
        out = problem.predict(f.x_t, f.t, f.condition)
        g = gradient(problem, error(problem, out, towards(problem.denoiser, endpoint, f.x_t, f.t), f))
        if weight:
            g = g + weight * gradient(problem, denoising_loss(problem, retain_rows(problem, rows)))
        return g

    descend(problem, steps, lr, direction)
