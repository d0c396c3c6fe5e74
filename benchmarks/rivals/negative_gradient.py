r"""NegGrad with a retain term: climb the denoising loss of x_f, descend that of x_r.

    g = grad L(x_r) - ascent · grad L(x_f)

ascent = 0 is what SISS calls naive deletion (go on training without x_f). Ascent is unbounded: nothing says where to
go instead.

Source: Golatkar et al. 2020, arXiv:1911.04933, as a baseline of SISS (arXiv:2503.01034), whose CelebA-HQ steps, rate
and batch these are. The weight is the plain difference; SISS's own is not known to us.
"""

from benchmarks.rivals.descent import descend, gradient
from benchmarks.rivals.problem import Problem, denoising_loss, forget_rows, retain_rows
from hotfix.shapes import Flat

__all__ = ["BATCH", "KNOB", "LR", "MODE", "STEPS", "SWEEP", "train"]

STEPS, LR, BATCH, MODE = 60, 5e-6, 64, "full"
ASCENT = 1.0
KNOB, SWEEP = "ascent", (0.01, 0.03, 0.1, 0.3, 1.0)


def train(problem: Problem, *, steps: int, lr: float, ascent: float = ASCENT, rows: int = BATCH) -> None:
    """Train in place. A step costs 2 x rows forward and backward.

    Args:
        problem: what to forget, on an open model.
        steps: steps of Adam.
        lr: its rate.
        ascent: weight of the forget gradient.
        rows: forget rows of a step, and as many retain rows.
    """

    def direction() -> Flat:
        g_f = gradient(problem, denoising_loss(problem, forget_rows(problem, rows)))
        g_r = gradient(problem, denoising_loss(problem, retain_rows(problem, rows)))
        return g_r - ascent * g_f

    descend(problem, steps, lr, direction)
