r"""Plain surrogate regression: endpoint replaced, and neither a timestep weight, a window nor gradient surgery.

    ‖ε_θ(x_t) - (x_t - a x_s)/s‖² + weight · ‖ε_θ(x_t^r) - ε_0(x_t^r)‖²,   x_t noised from x_f, t uniform

What hotfix is without what it adds. In ε and v the first term is infinite at low noise; t starts at T_MIN.

Source: Lee et al. 2026, arXiv:2603.10445, as far as its formula could be recovered; distillation as the retain term is
ours (the paper's is the denoising loss). Steps, rate and batch are hotfix's own (`hotfix.recipe.Train`): none are
known.
"""

from benchmarks.rivals.descent import descend, gradient
from benchmarks.rivals.prediction import towards
from benchmarks.rivals.problem import Noisy, Problem, error, forget_rows, pick, retain_rows
from hotfix.recipe import Train
from hotfix.shapes import Flat, PerExample

__all__ = ["BATCH", "KNOB", "LR", "MODE", "STEPS", "SWEEP", "train"]

STEPS, LR, BATCH, MODE = Train().steps, Train().lr, 8, "lora"
WEIGHT = 1.0
KNOB, SWEEP = "weight", (0.1, 0.3, 1.0, 3.0, 10.0)


def surrogate_loss(problem: Problem, f: Noisy) -> PerExample:
    """Squared error of the prediction at x_t noised from x_f to the one that heads for a surrogate, (B,).

    Args:
        problem: what to forget, on an open model.
        f: noised forget pictures, B rows.

    Source: Lee et al. 2026, arXiv:2603.10445.
    """
    x_s = problem.x_s[pick(problem, len(problem.x_s), len(f.x))]
    out = problem.predict(f.x_t, f.t, f.condition)
    return error(problem, out, towards(problem.denoiser, x_s, f.x_t, f.t), f)


def train(problem: Problem, *, steps: int, lr: float, weight: float = WEIGHT, rows: int = BATCH) -> None:
    """Train in place. A step costs 3 x rows forward and 2 x rows backward.

    Args:
        problem: what to forget, on an open model.
        steps: steps of Adam.
        lr: its rate.
        weight: of the retain term.
        rows: forget rows of a step, and as many retain rows.
    """

    def direction() -> Flat:
        g_f = gradient(problem, surrogate_loss(problem, forget_rows(problem, rows)))
        r = retain_rows(problem, rows)
        teacher = problem.teacher(r.x_t, r.t, r.condition)
        g_r = gradient(problem, error(problem, problem.predict(r.x_t, r.t, r.condition), teacher, r))
        return g_f + weight * g_r

    descend(problem, steps, lr, direction)
