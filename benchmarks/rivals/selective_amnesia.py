r"""Selective Amnesia: learn surrogates under the forget caption, replay the rest, and stay near the old weights.

    L(x_s | c_f) + gamma L(x_r | c_r) + penalty Σ_i F_i (θ_i - θ0_i)²,     F_i = E (∂ L(x_r | c_r) / ∂θ_i)²

The surrogate is noised itself, unlike in hotfix, so that without captions nothing pushes away from x_f. L is a sum
over the picture, as a log-likelihood is: that fixes the scale of F against L. Fisher information is of the trained
parameters: a LoRA with B = 0 gives none to A.

Source: Heng & Soh 2023, arXiv:2305.10120: gamma = 1, penalty = 10 (CIFAR-10; 50 for SD 1.4). Its replayed pictures are
the model's own samples, as x_r are. Steps, rate, batch, and how many pictures F is a mean of, are not known to us
(BATCH and SAMPLES are ours).
"""

import torch
from torch import Tensor

from benchmarks.rivals.descent import descend, gradient
from benchmarks.rivals.problem import Problem, captions, denoising_loss, noisy, pick, retain_rows
from hotfix.shapes import Flat, PerExample

__all__ = ["BATCH", "KNOB", "LR", "MODE", "STEPS", "SWEEP", "train"]

STEPS: int | None = None
LR: float | None = None
BATCH, MODE = 8, "full"
GAMMA, PENALTY, SAMPLES = 1.0, 10.0, 64
KNOB, SWEEP = "penalty", (0.1, 1.0, 10.0, 100.0, 1000.0)


def fisher_penalty(theta: Flat, theta_0: Flat, fisher: Flat) -> Tensor:
    """Σ F_i (θ_i - θ0_i)², a scalar: 0 at the old weights.

    Args:
        theta: parameters, (P,).
        theta_0: what they were, (P,).
        fisher: diagonal Fisher information at theta_0, (P,).

    Source: Kirkpatrick et al. 2017, arXiv:1612.00796, Eq. (3), its factor 1/2 left to the weight.
    """
    return (fisher * (theta - theta_0).square()).sum()


def penalty_gradient(theta: Flat, theta_0: Flat, fisher: Flat) -> Flat:
    """Gradient of `fisher_penalty` in theta, (P,): 2 F (θ - θ0)."""
    return 2 * fisher * (theta - theta_0)


def train(
    problem: Problem,
    *,
    steps: int,
    lr: float,
    penalty: float = PENALTY,
    rows: int = BATCH,
    gamma: float = GAMMA,
    samples: int = SAMPLES,
) -> None:
    """Train in place. A step costs 2 x rows forward and backward, F `samples` of both.

    Args:
        problem: what to forget, on an open model.
        steps: steps of Adam.
        lr: its rate.
        penalty: weight of the distance to the old weights.
        rows: surrogate rows of a step, and as many retain rows.
        gamma: weight of the replay.
        samples: retained pictures that the Fisher information is a mean over.
    """
    theta_0, fisher = _flat(problem), _fisher(problem, samples)

    def direction() -> Flat:
        g_s = gradient(problem, _surrogate_loss(problem, rows))
        g_r = gradient(problem, _likelihood(problem, denoising_loss(problem, retain_rows(problem, rows))))
        return g_s + gamma * g_r + penalty * penalty_gradient(_flat(problem), theta_0, fisher)

    descend(problem, steps, lr, direction)


def _surrogate_loss(problem: Problem, rows: int) -> PerExample:
    x = problem.x_s[pick(problem, len(problem.x_s), rows)]
    return _likelihood(problem, denoising_loss(problem, noisy(problem, x, captions(problem, rows))))


def _fisher(problem: Problem, samples: int) -> Flat:
    """Mean of squared gradients, one picture at a time: the square of a mean would be another thing."""
    squares = (
        gradient(problem, _likelihood(problem, denoising_loss(problem, retain_rows(problem, 1)))).square()
        for _ in range(samples)
    )
    total = next(squares)
    for square in squares:
        total += square
    return total / samples


def _likelihood(problem: Problem, losses: PerExample) -> PerExample:
    """Means over a picture's numbers to sums."""
    return losses * problem.x_f[0].numel()


def _flat(problem: Problem) -> Flat:
    return torch.cat([p.detach().flatten() for p in problem.parameters])
