r"""How often each noise level is trained on, for those who would rather choose than measure (hotfix/calibrate.py).

Every curve is a weight on the endpoint error ‖x_hat - target‖² = (s_t²/a_t²) ‖eps_hat - eps_target‖². Levels are
sampled in proportion to it, divided by the weight that the rows carry themselves (`Denoiser.weight`); a window is what
levels are sampled in as it is.
"""

import torch
from torch import Tensor

GAMMA = 5.0  # min-SNR
SHARPNESS = 50.0  # of a soft window's edges, per unit of t: they are 0.1 wide


def fixed(t: Tensor, low: float, high: float) -> Tensor:
    """1 inside [low, high], 0 outside; t is any shape, in (0, 1]."""
    return ((t >= low) & (t <= high)).float()


def soft(t: Tensor, low: float, high: float) -> Tensor:
    """The same with soft edges: σ(k(t - low)) - σ(k(t - high)).

    Source: MACE (Lu et al. 2024, arXiv:2403.06135), its timestep importance, with k = 0.05 for 1,000 steps.
    """
    return torch.sigmoid(SHARPNESS * (t - low)) - torch.sigmoid(SHARPNESS * (t - high))


def min_snr(a_t: Tensor, s_t: Tensor) -> Tensor:
    """min(SNR, γ), with SNR = a_t²/s_t².

    Source: Hang et al. 2023, arXiv:2303.09556, equation for x₀-prediction.
    """
    return (a_t / s_t.clamp_min(1e-4)).square().clamp(max=GAMMA)


def p2(a_t: Tensor, s_t: Tensor) -> Tensor:
    """SNR / (1 + SNR): 1 / (1 + SNR) on the ε-loss. For a variance-preserving schedule that is a_t².

    Source: Choi et al. 2022, arXiv:2204.00227, with k = γ = 1.
    """
    return a_t.square() / (s_t.square() + a_t.square())
