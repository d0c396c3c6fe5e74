"""Membership: can the model be told to have seen the target? By its denoising loss, and by its likelihood."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hotfix import likelihood
from hotfix.case import Case
from hotfix.denoiser import Denoiser
from hotfix.findings import Likelihood, Membership
from hotfix.intervals import Mean
from hotfix.partial import LEVELS, MEMBERSHIP
from hotfix.shapes import Latents, PerExample
from hotfix.similarity import stranger
from hotfix.stack import Stack

NOISES = 32  # of the loss, for every picture and level
SMALL = 3 * 64 * 64  # numbers in a latent: beyond, the likelihood would cost more than all else
STEPS, PROBES, OTHERS = 20, 4, 8  # of the likelihood: Heun's, probes for each target, pictures that must stay
EARLIEST, LATEST = 0.02, 0.99  # noise levels between which it is integrated


@torch.no_grad()
def losses(denoiser: Denoiser, stack: Stack, case: Case, seed: int) -> list[Membership]:
    """The ratio of denoising losses at every level, without a caption.

    Every noise meets a target, one picture that must stay and a stranger; the targets and those pictures take turns.

    Args:
        denoiser: of the pipeline, with no patch on.
        stack: whose effect is measured.
        case: the targets and what must stay.
        seed: of the score.

    Source: the monitor of SISS, Alberti et al. 2025, arXiv:2503.01034.
    """
    generator = torch.Generator().manual_seed(seed + MEMBERSHIP)
    turn = torch.arange(NOISES)
    x_f = torch.cat([target.x_f for target in case.targets])
    rows = [x_f, case.x_r[~case.twins.to(case.x_r.device)], _unseen(denoiser, case)]
    x = torch.cat([one[turn.to(one.device) % len(one)] for one in rows])
    eps = torch.randn((NOISES, *x.shape[1:]), generator=generator).to(x.device).repeat(len(rows), 1, 1, 1)
    condition = _empty(denoiser, len(x))
    found = []
    for t in LEVELS:
        at = torch.full((len(x),), t, device=x.device)

        def loss(at: Tensor = at) -> list[list[float]]:
            x_t, errors = denoiser.noised(x, at, eps), []
            for part in denoiser.parts(len(x)):
                said = {key: value[part] for key, value in condition.items()}
                x_hat = denoiser.x_hat(x_t[part], at[part], said)
                errors.append((x_hat - x[part]).square().flatten(1).mean(dim=1))
            return torch.cat(errors).view(len(rows), NOISES).tolist()

        before = loss()
        with stack.on(denoiser.pipe):
            after = loss()
        ratios = Mean.of(before[0], before[1]), Mean.of(after[0], after[1]), Mean.of(before[2], before[1])
        found.append(Membership(t=t, before=ratios[0], after=ratios[1], stranger=ratios[2]))
    return found


def likelihoods(denoiser: Denoiser, stack: Stack, case: Case, seed: int) -> Likelihood | None:
    """How likely the targets are without a caption, before and after; None of a model that is not small.

    Args:
        denoiser: of the pipeline, with no patch on.
        stack: whose effect is measured.
        case: the targets and what must stay.
        seed: of the score.
    """
    if case.x_r[0].numel() > SMALL:
        return None
    x_r = case.x_r[~case.twins.to(case.x_r.device)]
    x_f = torch.cat([target.x_f for target in case.targets])
    some = x_r[:: -(-len(x_r) // OTHERS)]
    parts = [x_f.repeat(PROBES, 1, 1, 1), some, _unseen(denoiser, case).repeat(PROBES, 1, 1, 1)]
    x, sizes = torch.cat(parts), [len(part) for part in parts]
    before = _nll(denoiser, x, seed).split(sizes)
    with stack.on(denoiser.pipe):
        after = _nll(denoiser, x, seed).split(sizes)
    was, now = ([Mean.of(bits.tolist()) for bits in part] for part in (before, after))
    return Likelihood(
        steps=STEPS,
        target_before=was[0],
        target=now[0],
        retain_before=was[1],
        retain=now[1],
        stranger_before=was[2],
        stranger=now[2],
    )


def _nll(denoiser: Denoiser, x: Latents, seed: int) -> PerExample:
    t = torch.linspace(EARLIEST, LATEST, 1000, device=x.device)
    a, s = (scale.flatten() for scale in denoiser.schedule(t))
    rows = likelihood.levels((s / a).cpu(), STEPS).to(x.device)
    t, a, condition = t[rows], a[rows], _empty(denoiser, len(x))

    def x_hat(z: Latents, i: int) -> Latents:
        return denoiser.x_hat(a[i] * z, t[i].expand(len(z)), condition)

    generator = torch.Generator().manual_seed(seed + MEMBERSHIP)
    return likelihood.nll(x_hat, x, (s[rows] / a), generator).cpu()


def _unseen(denoiser: Denoiser, case: Case) -> Latents:
    return denoiser.encode(torch.stack([stranger(target.picture) for target in case.targets]))


def _empty(denoiser: Denoiser, rows: int) -> Mapping[str, Tensor]:
    return {key: row.expand(rows, *row.shape[1:]) for key, row in denoiser.embed([""]).items()}
