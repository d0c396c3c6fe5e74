"""The losses of a step: the error of every row that is to be forgotten, and of every row that is to stay."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hotfix import objective, processes
from hotfix.denoiser import Denoiser
from hotfix.lora import Adapter
from hotfix.recipe import Train
from hotfix.rows import Bank, ForgetRows
from hotfix.shapes import Latents, PerExample

WALK = 2  # steps of the patched sampler, where it goes on before a row is looked at


def walked(denoiser: Denoiser, rows: ForgetRows) -> Latents:
    """The states at t, (B, C, H, W): where the patched sampler comes to that begins with the rows' (DDIM)."""
    far = rows.t < rows.begun
    if processes.several() and not far.any():
        far[0] = True  # a walk of no length: where weights are shared out all processes ask the network equally often
    x, first, last = rows.x_t[far], rows.begun[far], rows.t[far]
    condition = {key: value[far] for key, value in rows.condition.items()}
    with torch.no_grad():
        for i in range(WALK if len(x) else 0):
            now, then = (torch.lerp(first, last, step / WALK) for step in (i, i + 1))
            x_hat = denoiser.guided(x, now, condition, {}, 1.0)
            x = objective.ddim(x, x_hat, denoiser.schedule(now), denoiser.schedule(then))
    x_t = rows.x_t.clone()
    x_t[far] = x
    return x_t


def forget_loss(denoiser: Denoiser, bank: Bank, adapter: Adapter, rows: ForgetRows, options: Train) -> PerExample:
    """Endpoint error of every row against what `train.target` names.

    "delta" is what the unpatched model heads for, with its share of x_f exchanged for x_s; "hard" is x_s. What is
    finishing heads for x_s under both.
    """
    x_t = walked(denoiser, rows)
    a_t, s_t = denoiser.schedule(rows.t)
    with torch.no_grad():
        target = rows.x_s.clone()
        for i, among in enumerate(rows.blended):
            if among is not None:
                target[i] = objective.posterior_mean(x_t[i : i + 1], among, a_t[i], s_t[i])[0]
        if options.target == "delta":
            with adapter.off():
                base = denoiser.x_hat(x_t, rows.t, rows.condition)
            r = objective.share(base, rows.x_f, objective.posterior_mean(x_t, bank.others, a_t, s_t))
            moved = objective.delta(base, rows.x_f, target, r)
            target = torch.where(rows.finishing[:, None, None, None], target, moved)
    loss = objective.endpoint(denoiser.x_hat(x_t, rows.t, rows.condition), target, denoiser.weight(rows.t))
    if options.responsibility:
        own = objective.responsibility(x_t, rows.x_f, bank.others, a_t, s_t)
        loss = loss * torch.where(rows.finishing | (rows.t < rows.begun), 1.0, own)
    return loss


def evenly(x: Latents, generator: torch.Generator) -> tuple[Tensor, Latents]:
    """A noise level in (0, 1], drawn evenly, and a noise for every row: (B,) and (B, C, H, W)."""
    t = (1 - torch.rand(len(x), generator=generator)).to(x.device)
    return t, torch.randn(x.shape, generator=generator).to(x.device)


def denoising(denoiser: Denoiser, x: Latents, t: Tensor, eps: Latents, condition: Mapping[str, Tensor]) -> PerExample:
    """The ordinary denoising loss of every row, weighed as the forget loss is.

    Nothing in a build minimises it: it is what someone does who trains a picture back in.
    """
    return objective.endpoint(denoiser.x_hat(denoiser.noised(x, t, eps), t, condition), x, denoiser.weight(t))


def retain_loss(
    denoiser: Denoiser, adapter: Adapter, x_t: Latents, t: Tensor, condition: Mapping[str, Tensor]
) -> PerExample:
    """Distillation to the unpatched model on states that must stay."""
    with torch.no_grad(), adapter.off():
        teacher = denoiser.predict(x_t, t, condition)
    return objective.distil(denoiser.predict(x_t, t, condition), teacher)
