r"""SISS: both denoising losses at one noisy state m, drawn from a mixture and importance-weighted.

    m ~ (1-λ) q(.|x_r) + λ q(.|x_f),   same eps and t;   d_x = ‖m - a x_r‖² / 2s²,   d_a = ‖m - a x_f‖² / 2s²
    w_x = 1 / ((1-λ) + λ exp(d_x - d_a)) = q(m|x_r) / mixture,   w_a likewise for x_f
    g = grad w_x ‖ε̂(m) - ε_x‖² - (norm / ‖g_a‖) grad w_a ‖ε̂(m) - ε_a‖²,   ε_x = (m - a x_r)/s,   clipped to 1

`norm` is fixed for the run: a share of the norm of the retain gradient, measured on one batch before the first step.
A state keeps the caption of the picture it was noised from; in the paper both have the same.

Source: Alberti et al. 2025, arXiv:2503.01034. λ = 0.5, clip 1.0, and for CelebA-HQ steps, rate, batch 4 x 16 and norm
500, which its authors describe as a tenth of the gradient norm of naive deletion. t is uniform here.
"""

import torch
from torch.nn.functional import normalize

from benchmarks.rivals.descent import descend, gradient
from benchmarks.rivals.prediction import towards
from benchmarks.rivals.problem import Noisy, Problem, error, forget_rows, retain_rows
from hotfix.shapes import Flat, PerExample

__all__ = ["BATCH", "KNOB", "LR", "MODE", "STEPS", "SWEEP", "train"]

STEPS, LR, BATCH, MODE = 60, 5e-6, 64, "full"
SHARE, LAM = 0.1, 0.5
KNOB, SWEEP = "share", (0.01, 0.03, 0.1, 0.3, 1.0)


def weights(d_x: PerExample, d_a: PerExample, lam: float) -> tuple[PerExample, PerExample]:
    """Importance weights (w_x, w_a), each (B,); (1-lam) w_x + lam w_a = 1.

    Args:
        d_x: ‖m - a x_r‖² / 2s², summed over the picture, (B,).
        d_a: ‖m - a x_f‖² / 2s², (B,).
        lam: share of x_f in the mixture that m is drawn from, in (0, 1).

    Source: Alberti et al. 2025, arXiv:2503.01034.
    """
    odds = (d_x - d_a).clamp(-80, 80).exp()  # q(m|x_f) / q(m|x_r); e^80 is near float32's last
    return 1 / ((1 - lam) + lam * odds), 1 / ((1 - lam) / odds + lam)


def train(
    problem: Problem, *, steps: int, lr: float, share: float = SHARE, rows: int = BATCH, lam: float = LAM
) -> None:
    """Train in place. A step costs rows forward and 2 x rows backward; so does the measurement before the first.

    Args:
        problem: what to forget, on an open model.
        steps: steps of Adam.
        lr: its rate.
        share: norm of the forget gradient, in norms of the first retain gradient.
        rows: states of a step.
        lam: share of states that are noised from x_f.
    """
    norm = share * _gradients(problem, rows, lam)[0].norm()

    def direction() -> Flat:
        g_x, g_a = _gradients(problem, rows, lam)
        return g_x - norm * normalize(g_a, dim=0)  # where no state could have come from x_f, g_a is 0 and stays it

    descend(problem, steps, lr, direction)


def _gradients(problem: Problem, rows: int, lam: float) -> tuple[Flat, Flat]:
    r, f = retain_rows(problem, rows), forget_rows(problem, rows)
    from_f = torch.rand(rows, generator=problem.generator).to(r.t.device) < lam
    x = torch.where(from_f[:, None, None, None], f.x, r.x)
    condition = {
        k: torch.where(from_f.view(-1, *[1] * (v.ndim - 1)), f.condition[k], v) for k, v in r.condition.items()
    }
    m = Noisy(x, r.eps, r.t, problem.denoiser.noised(x, r.t, r.eps), condition)
    a, s = problem.denoiser.schedule(m.t)
    d_x, d_a = (((m.x_t - a * x) / s).square().sum(dim=(1, 2, 3)) / 2 for x in (r.x, f.x))
    w_x, w_a = weights(d_x, d_a, lam)
    out = problem.predict(m.x_t, m.t, m.condition)
    l_x, l_a = (error(problem, out, towards(problem.denoiser, x, m.x_t, m.t), m) for x in (r.x, f.x))
    return gradient(problem, w_x * l_x, retain_graph=True), gradient(problem, w_a * l_a)
