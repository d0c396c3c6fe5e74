"""Descent: the gradient of a loss as one flat vector, and the optimiser that follows it, the same for every rival."""

from collections.abc import Callable

import torch

from benchmarks.rivals.problem import Problem
from hotfix.shapes import Flat, PerExample

CLIP = 1.0  # SISS's; the others' losses can spike at low noise, so it is a favour to them


def gradient(problem: Problem, losses: PerExample, retain_graph: bool = False) -> Flat:
    """Gradient of the mean loss in all trained parameters, as one vector; zero where a parameter has no part in it."""
    grads = torch.autograd.grad(
        losses.mean(), problem.parameters, retain_graph=retain_graph, allow_unused=True, materialize_grads=True
    )
    return torch.cat([g.flatten() for g in grads])


def descend(problem: Problem, steps: int, lr: float, direction: Callable[[], Flat]) -> None:
    """Follow `direction()`, a flat gradient, down for `steps` steps of Adam, clipped to norm CLIP, no weight decay."""
    optimizer = torch.optim.Adam(problem.parameters, lr=lr)
    sizes = [p.numel() for p in problem.parameters]
    for _ in range(steps):
        for p, g in zip(problem.parameters, direction().split(sizes), strict=True):
            p.grad = g.view_as(p)
        torch.nn.utils.clip_grad_norm_(problem.parameters, CLIP)
        optimizer.step()
    optimizer.zero_grad()
