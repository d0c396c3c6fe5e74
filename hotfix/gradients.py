"""The gradients of a step: of means over whole batches, added up over processes, from few rows at a time.

A gradient of a mean is the mean of the rows' gradients: how many go through the network at once (`train.micro_batch`)
decides what a backward pass keeps, and nothing else up to rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from hotfix import processes
from hotfix.denoiser import Denoiser
from hotfix.lora import Adapter
from hotfix.losses import denoising, evenly, forget_loss, retain_loss
from hotfix.recipe import Train
from hotfix.robust import hardest, relearned
from hotfix.rows import Bank, ForgetRows
from hotfix.shapes import Flat, Latents, PerExample

# x_t, t and conditions, as `hotfix.rows.retain_states` draws them
States = tuple[Latents, Tensor, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Gradients:
    """Of one build."""

    denoiser: Denoiser
    bank: Bank
    adapter: Adapter
    options: Train
    forgets: Sequence[slice]  # this process's rows of a batch, in parts
    retains: Sequence[slice]

    @classmethod
    def of(cls, denoiser: Denoiser, bank: Bank, adapter: Adapter, options: Train) -> Self:
        """Share the rows out.

        Raises:
            RecipeError: fewer rows than processes.
        """
        forgets = processes.share(options.batch, "train.batch", options.micro_batch)
        retains = processes.share(options.retain_batch, "train.retain_batch", options.micro_batch)
        return cls(denoiser, bank, adapter, options, forgets, retains)

    def loss(self, rows: ForgetRows) -> PerExample:
        """The forget loss."""
        return forget_loss(self.denoiser, self.bank, self.adapter, rows, self.options)

    def worst(self, rows: ForgetRows, generator: torch.Generator) -> ForgetRows:
        """The same rows, under the noises that suppress worst if the recipe asks for them."""
        noises, step = self.options.adversarial_noises, self.options.adversarial_step
        return hardest(self.denoiser, self.loss, rows, noises, step, generator, self.options.micro_batch)

    def both(self, rows: ForgetRows, states: States) -> Sequence[Tensor]:
        """The forget and the retain gradient, (P,), and the mean loss of each, (1,): in one message."""
        x_t, t, condition = states

        def retain(part: slice) -> PerExample:
            said = {key: value[part] for key, value in condition.items()}
            return retain_loss(self.denoiser, self.adapter, x_t[part], t[part], said)

        (g_f, forget), (g_r, kept) = self._forget(rows), self._mine(retain, self.retains, self.options.retain_batch)
        return processes.total(g_f, g_r, forget, kept)

    def after_attack(self, rows: ForgetRows, phi: Flat, generator: torch.Generator) -> Flat:
        """The forget gradient after one step of somebody's training on x_f, of size `train.relearn`."""
        t, eps = evenly(rows.x_f, generator)

        def attack(part: slice) -> PerExample:
            return denoising(self.denoiser, rows.x_f[part], t[part], eps[part], rows[part].condition)

        uphill = processes.total(*self._mine(attack, self.forgets, self.options.batch))[0]
        return relearned(
            self.adapter, phi, uphill, lambda: processes.total(*self._forget(rows))[0], self.options.relearn
        )

    def _forget(self, rows: ForgetRows) -> tuple[Flat, Tensor]:
        return self._mine(lambda part: self.loss(rows[part]), self.forgets, self.options.batch)

    def _mine(self, loss: Callable[[slice], PerExample], parts: Sequence[slice], rows: int) -> tuple[Flat, Tensor]:
        """Gradient and value of a mean over so many rows, as far as this process's go."""

        def of(part: slice) -> tuple[Flat, Tensor]:
            mean = loss(part).sum() / rows
            return self.adapter.gradient(mean), mean.detach()[None]

        gradient, value = of(parts[0])
        for part in parts[1:]:
            more, there = of(part)
            gradient += more
            value += there
        return gradient, value
