"""Attacks through the weights: trained on, and rounded. Whoever has the weights can do both."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hotfix import lora
from hotfix.attack_noise import BATCH, drawn_from, noise
from hotfix.case import Case, Target
from hotfix.denoiser import Denoiser
from hotfix.losses import denoising, evenly
from hotfix.partial import cycled
from hotfix.shapes import Latents, Pictures

RATE, RANK = 1e-3, 4  # of the LoRA that is trained
BITS = (8, 4)


def relearning(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int, *, steps: int) -> Pictures:
    """A LoRA trained on the picture, on top of whatever is on."""
    return _after_training(denoiser, case, target.x_f, list(case.captions) or [""], steps, n, seed)


def benign_tuning(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int, *, steps: int) -> Pictures:
    """The same on pictures that have nothing to do with it."""
    return _after_training(denoiser, case, *case.others, steps, n, seed)


def rounded(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> Pictures:
    """Every matrix of the network rounded to 8 bits, for half of the drawings, and to 4: a scale for every row."""
    drawn = []
    for i, bits in enumerate(BITS[:n]):
        with _rounded(denoiser.model, bits):
            drawn.append(drawn_from(denoiser, case, noise(denoiser, n, seed)[i :: len(BITS)]))
    return torch.cat(drawn)


def denoising_loss(denoiser: Denoiser, x: Latents, rows: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Mean of a batch of x under its rows, or under one row for all."""
    pick = torch.randint(len(x), (BATCH,), generator=generator).to(x.device)
    rows = {k: v[pick] if len(v) == len(x) else v.expand(BATCH, *v.shape[1:]) for k, v in rows.items()}
    return denoising(denoiser, x[pick], *evenly(x[pick], generator), rows).mean()


def trained(adapter: lora.Adapter, loss: Callable[[], Tensor], steps: int) -> None:
    """Lower a loss that depends on the adapter, by AdamW."""
    optimiser = torch.optim.AdamW(adapter.parameters, lr=RATE)
    for _ in range(steps):
        gradients = torch.autograd.grad(loss(), adapter.parameters)
        for p, gradient in zip(adapter.parameters, gradients, strict=True):
            p.grad = gradient
        optimiser.step()


def _after_training(
    denoiser: Denoiser, case: Case, x: Latents, captions: Sequence[str], steps: int, n: int, seed: int
) -> Pictures:
    generator = torch.Generator().manual_seed(seed)
    rows = denoiser.embed(cycled(captions, len(x)))
    with lora.attached(denoiser.model, denoiser.targets, RANK, seed) as adapter:
        trained(adapter, lambda: denoising_loss(denoiser, x, rows, generator), steps)
        return drawn_from(denoiser, case, noise(denoiser, n, seed))


@contextmanager
def _rounded(model: nn.Module, bits: int) -> Iterator[None]:
    """To the nearest of evenly spaced values, as a host would that quantises without calibration."""
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    weights = [weight for weight in weights if weight.is_floating_point()]  # others are rounded already
    originals = [weight.detach().clone() for weight in weights]
    try:
        for weight in weights:
            rows = tuple(range(1, weight.ndim))
            scale = weight.detach().abs().amax(dim=rows, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
            weight.data.copy_((weight / scale).round() * scale)
        yield
    finally:
        for weight, original in zip(weights, originals, strict=True):
            weight.data.copy_(original)
