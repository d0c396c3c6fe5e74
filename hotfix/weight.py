r"""How often each noise level is trained on, for those who would rather choose than measure (hotfix/calibrate.py).

Every curve is a density over t for rows of the loss a_t² ‖x_hat - target‖² = s_t² ‖eps_hat - eps_target‖². A weight
w(t) that a paper puts on the ε-loss is therefore w / s_t² here, whatever the model predicts. Levels are sampled in
proportion to it; the rows themselves carry no second weight.
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
    """min(SNR, γ) / SNR on the ε-loss, with SNR = a_t²/s_t².

    Source: Hang et al. 2023, arXiv:2303.09556, equation for ε-prediction.
    """
    s2 = s_t.clamp_min(1e-4).square()
    snr = a_t.square() / s2
    return (GAMMA / snr.clamp_min(1e-12)).clamp(max=1) / s2


def p2(a_t: Tensor, s_t: Tensor) -> Tensor:
    """1 / (1 + SNR) on the ε-loss. For a variance-preserving schedule that is uniform here: 1 / (1 + SNR) = s_t².

    Source: Choi et al. 2022, arXiv:2204.00227, with k = γ = 1.
    """
    s2 = s_t.clamp_min(1e-4).square()
    return 1 / (s2 + a_t.square())
