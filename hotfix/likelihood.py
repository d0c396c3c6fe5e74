r"""Likelihood under the probability-flow ODE, for models small enough to integrate it.

In z = x_t / a_t = x + σ ε, σ = s_t / a_t, every schedule and every kind of prediction is one ODE:

    dz/dσ = (z - x̂(z, σ)) / σ        d log p/d ln σ = -(D - tr ∂x̂/∂z)

so log p at the least σ is that of the noise at the largest plus the integral of D - tr ∂x̂/∂z. Heun's method steps from
one noise level that the model knows to the next; the trace is Hutchinson's estimate with one probe of signs for each
row, the same at every step.

Source: Song et al. 2021, arXiv:2011.13456, section 4.3 and appendix D.2; in the coordinates of Karras et al. 2022,
arXiv:2206.00364.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from hotfix.shapes import Latents, PerExample

Endpoint = Callable[[Latents, int], Latents]  # z at the i-th noise level -> x̂


def nll(x_hat: Endpoint, x: Latents, sigmas: Tensor, generator: torch.Generator) -> PerExample:
    """-log2 p(x) in bits per number, (B,): a density of the latents, so it may be negative.

    Args:
        x_hat: the model's endpoint for each row.
        x: (B, C, H, W).
        sigmas: noise levels in ascending order, (N,); x stands for the first, the last drowns it.
        generator: of the probes, one for every row.
    """
    numbers = x[0].numel()
    probe = (torch.randint(0, 2, x.shape, generator=generator) * 2.0 - 1).to(x)

    def slope(z: Latents, i: int) -> tuple[Latents, PerExample]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            end = x_hat(z, i)
            (back,) = torch.autograd.grad((end * probe).sum(), z)
        return ((z - end) / sigmas[i]).detach(), numbers - (back * probe).flatten(1).sum(dim=1)

    z, gained = x, torch.zeros(len(x), device=x.device)
    for i, (now, then) in enumerate(pairwise(sigmas.tolist())):
        eps, rate = slope(z, i)
        eps_then, rate_then = slope(z + (then - now) * eps, i + 1)
        z = z + (then - now) * (eps + eps_then) / 2
        gained = gained + math.log(then / now) * (rate + rate_then) / 2
    last = float(sigmas[-1])
    at_noise = -z.flatten(1).square().sum(dim=1) / (2 * last**2) - numbers * math.log(last * math.sqrt(2 * math.pi))
    return -(at_noise + gained) / (numbers * math.log(2))


def levels(sigma: Tensor, steps: int) -> Tensor:
    """Rows of a table of noise levels, ascending, that lie most evenly in their logarithm, without repeats."""
    u = sigma.log()
    wanted = torch.linspace(float(u[0]), float(u[-1]), steps + 1)
    return (u - wanted[:, None]).abs().argmin(dim=1).unique()
