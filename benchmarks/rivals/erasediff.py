r"""EraseDiff: descend the retain loss subject to having forgotten, where forgotten means predicting some other noise.

    min L_r(θ)  such that  q(θ) = L_f(θ) - min_φ L_f(φ) <= 0        L_f(θ) = E ‖ε_θ(x_t) - ε_f‖², ε_f ~ U(0, 1)
    g = g_r + w g_f        w = max(η - ⟨g_r, g_f⟩ / ‖g_f‖², 0), so that ⟨g, g_f⟩ >= η ‖g_f‖²: q falls, whatever L_r does

The lower level's value is found by inner steps from θ and enters with its gradient stopped, as in the released code,
so that grad q = grad L_f(θ): the inner steps change no update. They are left out, which gives EraseDiff more steps at
equal compute.

Source: Wu et al. 2024, arXiv:2401.05779; the dual step in closed form as in the baseline of SISS (arXiv:2503.01034),
after BOME (Liu et al. 2022, arXiv:2209.08709). Steps, rate and batch are SISS's for CelebA-HQ; EraseDiff's own are not
known to us. η = 0.5 is BOME's, as we remember it.
"""

import torch
from torch import Tensor

from benchmarks.rivals.descent import descend, gradient
from benchmarks.rivals.prediction import eps_hat, target
from benchmarks.rivals.problem import Problem, denoising_loss, error, forget_rows, retain_rows
from hotfix.shapes import Flat, PerExample

__all__ = ["BATCH", "KNOB", "LR", "MODE", "STEPS", "SWEEP", "train"]

STEPS, LR, BATCH, MODE = 60, 5e-6, 64, "full"
ETA = 0.5
KNOB, SWEEP = "eta", (0.01, 0.05, 0.1, 0.5, 1.0)


def dual_weight(g_r: Flat, g_f: Flat, eta: float) -> Tensor:
    """The smallest w >= 0 with ⟨g_r + w g_f, g_f⟩ >= eta ‖g_f‖², a scalar.

    Args:
        g_r: gradient of the retain loss, (P,).
        g_f: gradient of the forget loss, (P,).
        eta: how fast the constraint must fall, in units of ‖g_f‖².

    Source: Liu et al. 2022, arXiv:2209.08709, the closed form of the multiplier.
    """
    return (eta - (g_r @ g_f) / (g_f @ g_f).clamp_min(torch.finfo(g_f.dtype).tiny)).clamp_min(0)


def train(problem: Problem, *, steps: int, lr: float, eta: float = ETA, rows: int = BATCH) -> None:
    """Train in place. A step costs 2 x rows forward and backward.

    Args:
        problem: what to forget, on an open model.
        steps: steps of Adam.
        lr: its rate.
        eta: share of ‖g_f‖² by which the forget loss must fall.
        rows: forget rows of a step, and as many retain rows.
    """

    def direction() -> Flat:
        g_f = gradient(problem, _forget_loss(problem, rows))
        g_r = gradient(problem, denoising_loss(problem, retain_rows(problem, rows)))
        return g_r + dual_weight(g_r, g_f, eta) * g_f

    descend(problem, steps, lr, direction)


def _forget_loss(problem: Problem, rows: int) -> PerExample:
    """The training loss with the noise in its target (not in x_t) exchanged for uniform noise."""
    f = forget_rows(problem, rows)
    other = torch.rand(f.eps.shape, generator=problem.generator).to(f.eps.device)
    out = problem.predict(f.x_t, f.t, f.condition)
    if problem.space == "eps":  # `error` would ask for the noise that target and x_t imply together
        return (eps_hat(problem.denoiser, out, f.x_t, f.t) - other).square().mean(dim=(1, 2, 3))
    return error(problem, out, target(problem.denoiser, f.x, other, f.t), f)
