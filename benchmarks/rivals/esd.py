r"""ESD, driven by the noised picture: regress the prediction to the far side of the base's own, away from x_f.

    with captions   ε_0(x_t, "") - η (ε_0(x_t, c_f) - ε_0(x_t, ""))        the paper's target
    without         ε_0(x_t)     - η (ε           - ε_0(x_t))              the true noise in place of the caption's

ε_0 is the base, x_t is noised from x_f (in the paper it is sampled by the model under c_f). No retain term. An affine
combination with weights that add up to 1, so the target is the same in ε, v and velocity.

Source: Gandikota et al. 2023, arXiv:2303.07345: η = 1, 1000 steps of one row at 1e-5, all of them as we remember the
first release; its later code has η = 2, 200 steps at 5e-5. The target without captions is ours.
"""

import torch
from torch import Tensor

from benchmarks.rivals.descent import descend, gradient
from benchmarks.rivals.prediction import target
from benchmarks.rivals.problem import Noisy, Problem, error, forget_rows
from hotfix.shapes import Flat, Latents

__all__ = ["BATCH", "KNOB", "LR", "MODE", "STEPS", "SWEEP", "train"]

STEPS, LR, BATCH, MODE = 1000, 1e-5, 1, "full"
ETA = 1.0
KNOB, SWEEP = "eta", (0.25, 0.5, 1.0, 2.0, 4.0)


def away(neutral: Latents, forget: Latents, eta: float) -> Latents:
    """neutral - eta (forget - neutral): as far beyond `neutral` as `forget` is on this side, times eta.

    Args:
        neutral: what the base predicts without the caption, (B, C, H, W).
        forget: the prediction that leads to x_f, same shape.
        eta: how far beyond.

    Source: Gandikota et al. 2023, arXiv:2303.07345.
    """
    return neutral - eta * (forget - neutral)


def train(problem: Problem, *, steps: int, lr: float, eta: float = ETA, rows: int = BATCH) -> None:
    """Train in place. A step costs 2 x rows forward (3 x under a caption) and rows backward.

    Args:
        problem: what to forget, on an open model.
        steps: steps of Adam.
        lr: its rate.
        eta: how far beyond the base's prediction.
        rows: forget rows of a step.
    """

    def direction() -> Flat:
        f = forget_rows(problem, rows)
        neutral = problem.teacher(f.x_t, f.t, problem.bare(rows))
        forget = target(problem.denoiser, f.x, f.eps, f.t)
        bare = _bare(problem, f)
        if not bool(bare.all()):
            forget = torch.where(bare[:, None, None, None], forget, problem.teacher(f.x_t, f.t, f.condition))
        out = problem.predict(f.x_t, f.t, f.condition)
        return gradient(problem, error(problem, out, away(neutral, forget, eta), f))

    descend(problem, steps, lr, direction)


def _bare(problem: Problem, rows: Noisy) -> Tensor:
    """Which rows are under the empty caption or under none, (B,) bool: the paper's target leads nowhere there."""
    bare = torch.ones(len(rows.x), dtype=torch.bool, device=rows.x.device)
    for k, v in rows.condition.items():
        bare &= (v == problem.empty[k]).flatten(1).all(dim=1)
    return bare
