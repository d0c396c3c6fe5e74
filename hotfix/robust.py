"""The robust arm: train where suppression is weakest. Off by default; each part costs further passes a step.

Two weak places are known: noises from which a suppressed picture still comes back, and factors a few training steps
away. Every draw comes from the generator that is handed in.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hotfix.denoiser import Denoiser
from hotfix.lora import Adapter
from hotfix.objective import length
from hotfix.rows import ForgetRows
from hotfix.shapes import Flat, PerExample

Loss = Callable[[ForgetRows], PerExample]


def hardest(
    denoiser: Denoiser,
    loss: Loss,
    rows: ForgetRows,
    noises: int,
    step: float,
    generator: torch.Generator,
    micro: int = 0,
) -> ForgetRows:
    r"""The rows under the noises that suppress worst: of `noises` draws each row keeps the one with the highest loss.

    Then, if `step` is not 0, one signed step up the loss, and back to the length that the noise had:

        eps <- ‖eps‖ · e / ‖e‖,  e = eps + step · sign ∂loss/∂eps

    A row that the sampler goes on with keeps its noise there: no gradient is taken through its steps.

    Args:
        denoiser: of the model that is being trained.
        loss: the forget loss of every row.
        rows: with their first noise, which is one of the candidates.
        noises: how many; 1 changes nothing.
        step: of the sign, in units of the noise's standard deviation; 0 changes nothing.
        generator: of the candidates.
        micro: rows that go through the network at once; 0 is all.

    Source: an initial noise can be searched for that brings a suppressed picture back (IVO, arXiv:2602.00175;
        arXiv:2412.00782); training on the worst of them is adversarial training (Madry et al. 2017, arXiv:1706.06083).
    """
    if noises > 1:
        draws = (torch.randn(rows.eps.shape, generator=generator).to(rows.eps.device) for _ in range(noises - 1))
        candidates = torch.stack([rows.eps, *draws])
        with torch.no_grad():
            tried = (rows.noised_with(denoiser, eps).split(micro) for eps in candidates)
            losses = torch.stack([torch.cat([loss(some) for some in parts]) for parts in tried])
        rows = rows.noised_with(denoiser, candidates[losses.argmax(dim=0), torch.arange(len(rows.eps))])
    if step:
        uphill: list[Tensor] = []
        for some in rows.split(micro):
            eps = some.eps.clone().requires_grad_()
            uphill += torch.autograd.grad(loss(some.noised_with(denoiser, eps)).sum(), eps)
        moved = rows.eps + step * torch.cat(uphill).sign()
        rows = rows.noised_with(denoiser, moved * (length(rows.eps) / length(moved)))
    return rows


def relearned(adapter: Adapter, phi: Flat, attack: Flat, gradient: Callable[[], Flat], size: float) -> Flat:
    r"""The forget gradient after one step of an attack, g_f(φ - size · ∂L_attack/∂φ), to be added to g_f(φ).

    Descending it makes the first step of relearning lead to the surrogate too. To first order: the step itself is not
    differentiated.

    Args:
        adapter: its factors are views of `phi`, here and afterwards.
        phi: all factors, shape (P,).
        attack: the gradient of the mean attack loss at phi, shape (P,).
        gradient: of the mean forget loss at the factors of the moment, shape (P,).
        size: of the attacker's plain gradient step.

    Source: a loss after simulated fine-tuning, Meta-Unlearning, Gao et al. 2024, arXiv:2410.12777, here with the forget
        loss itself as that loss; first-order MAML, Finn et al. 2017, arXiv:1703.03400.
    """
    adapter.set_flat(phi - size * attack)
    try:
        return gradient()
    finally:
        adapter.set_flat(phi)
