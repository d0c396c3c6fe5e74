"""Attacks through adapters: trained on the bare base, as a downloaded one is, and loaded over whatever is on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hotfix import lora
from hotfix.attack_noise import BATCH, begun, drawn_from
from hotfix.attack_weights import RANK, denoising_loss, trained
from hotfix.case import Case, Target
from hotfix.denoiser import Denoiser
from hotfix.export import peft_config
from hotfix.objective import ddim, endpoint, landing
from hotfix.patch import B
from hotfix.shapes import Latents, Pictures

Factors = Mapping[str, Tensor]

STYLING, COLOUR = 80, 0.5  # training steps for a style, and how much of the colour it leaves
WEIGHTS = (0.5, 1.0)  # that the style is loaded at
FEW, WITHIN, DISTILLING = 4, 3, 80  # steps of a drawing, the base's own within each, and training steps
LEAST = 0.1  # noise level from which on a big step is learnt


def style(denoiser: Denoiser, case: Case, seed: int) -> Factors:
    """Of pictures that have nothing to do with the target, half grey, under their own captions."""
    x = denoiser.encode(case.strangers.lerp(case.strangers.mean(dim=1, keepdim=True), 1 - COLOUR))
    rows, generator = denoiser.embed(case.others[1]), torch.Generator().manual_seed(seed)
    with lora.attached(denoiser.model, denoiser.targets, RANK, seed) as adapter:
        trained(adapter, lambda: denoising_loss(denoiser, x, rows, generator), STYLING)
        return adapter.tensors()


def adapter_on_top(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int, *, brought: Factors) -> Pictures:
    """A style loaded at half and at all of its strength, in equal parts."""
    x, t = begun(denoiser, case, target, n, seed)
    drawn = []
    for i, weight in enumerate(WEIGHTS[:n]):
        with loaded(denoiser.pipe, denoiser.component, brought, weight):
            drawn.append(drawn_from(denoiser, case, x[i :: len(WEIGHTS)], t))
    return torch.cat(drawn)


def distilled(denoiser: Denoiser, case: Case, seed: int) -> Factors:
    """One step for three of the base's own, guidance and all, on pictures that have nothing to do with the target."""
    x, captions = case.others
    rows, null, generator = denoiser.embed(captions), denoiser.unguided, torch.Generator().manual_seed(seed)
    with lora.attached(denoiser.model, denoiser.targets, RANK, seed) as adapter:
        trained(adapter, lambda: distillation_loss(denoiser, adapter, x, rows, null, generator), DISTILLING)
        return adapter.tensors()


def distillation_loss(
    denoiser: Denoiser,
    adapter: lora.Adapter,
    x: Latents,
    rows: Mapping[str, Tensor],
    null: Mapping[str, Tensor],
    generator: torch.Generator,
) -> Tensor:
    """How far one step with the adapter ends from several without it, mean of a batch.

    Args:
        denoiser: of the base.
        adapter: on its network.
        x: pictures that are noised, (N, C, H, W).
        rows: a condition for each of them.
        null: what guidance leads away from.
        generator: of the batch, the levels and the noise.

    Source: progressive distillation, Salimans & Ho 2022, arXiv:2202.00512; of guided models, arXiv:2210.03142.
    """
    pick = torch.randint(len(x), (BATCH,), generator=generator).to(x.device)
    condition = {key: row[pick] for key, row in rows.items()}
    eps = torch.randn(x[pick].shape, generator=generator).to(x.device)
    t = (1 - (1 - LEAST) * torch.rand(BATCH, generator=generator)).to(x.device)
    x_t = x_then = denoiser.noised(x[pick], t, eps)
    then = (t - 1 / FEW).clamp_min(0)
    with torch.no_grad(), adapter.off():
        away = {key: row.expand(BATCH, *row.shape[1:]) for key, row in null.items()}
        for now, later in pairwise(t.lerp(then, i / WITHIN) for i in range(WITHIN + 1)):
            x_hat = denoiser.guided(x_then, now, condition, away, denoiser.guidance)
            x_then = ddim(x_then, x_hat, denoiser.schedule(now), denoiser.schedule(later))
        wanted = landing(x_t, x_then, denoiser.schedule(t), denoiser.schedule(then))
    return endpoint(denoiser.x_hat(x_t, t, condition), wanted, denoiser.weight(t)).mean()


def few_steps(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int, *, brought: Factors) -> Pictures:
    """Drawn in a few steps, without guidance: the adapter has it in it."""
    x, t = begun(denoiser, case, target, n, seed)
    with loaded(denoiser.pipe, denoiser.component, brought, 1.0):
        return drawn_from(denoiser, case, x, t, steps=FEW, guidance=1.0)


@contextmanager
def loaded(pipe: Any, component: str, factors: Factors, weight: float) -> Iterator[None]:
    """An adapter on a pipeline as its user puts it there, and off again, exactly.

    By diffusers' own loader; by peft where the pipeline has none.

    Args:
        pipe: with patches or without, and no adapters of its own.
        component: the network's name in it.
        factors: under peft's names without a component; alpha = rank.
        weight: that they count with.

    Raises:
        HotfixError: it has adapters of its own, in whatever network: its loader would take them off, too.
    """
    lora.refuse_others(*pipe.components.values())
    model, loads = getattr(pipe, component), hasattr(pipe, "load_lora_weights")
    with lora.restored(model):
        try:
            with torch.random.fork_rng(devices=[]):  # peft draws factors before it reads them
                if loads:
                    named = {f"{component}.{name}": factor for name, factor in factors.items()}
                    pipe.load_lora_weights(named, adapter_name=lora.ADAPTER)
                    pipe.set_adapters([lora.ADAPTER], [weight])
                else:
                    scaled = {name: f * (weight if name.endswith(B) else 1) for name, f in factors.items()}
                    lora.put_on(model, scaled, peft_config(scaled))
            yield
        finally:
            if loads:
                pipe.unload_lora_weights()
