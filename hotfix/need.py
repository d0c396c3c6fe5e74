"""How much memory a build needs, by part, from shapes alone; `planning` probes what a step keeps for its backward pass.

On an accelerator the parts lie there, and only the pictures of the bank on the host.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hotfix import cost, offload
from hotfix.bank import bank_captions
from hotfix.case import BLENDED, VIEWS
from hotfix.denoiser import Denoiser
from hotfix.lora import Adapter
from hotfix.recipe import Recipe
from hotfix.weights import stored

FLOAT = 4  # bytes
COMPARED = 3  # times the pictures of the bank: they, their difference from one, and its square
LESS = "a smaller train.rank, fewer layers in train.targets, or a smaller retain.size"


@dataclass(frozen=True)
class Need:
    """Bytes by part, beside the weights, which are there already."""

    what: str  # as the subject of a sentence
    device: torch.device
    there: Mapping[str, int]  # on the device
    host: Mapping[str, int]

    def check(self, *, hint: str = LESS) -> None:
        """Refuse what cannot fit.

        Raises:
            HotfixError: more is needed than is free.
        """
        there, host = sum(self.there.values()), sum(self.host.values())
        if self.device.type == "cuda":
            cost.room(self.what, there, cost.free(self.device), "GPU", hint)
            cost.room(self.what, host, cost.free(), "host", hint)
        else:
            cost.room(self.what, there + host, cost.free(), "host", hint)


def of(recipe: Recipe, denoiser: Denoiser, adapter: Adapter) -> Need:
    """What is known without a step. The loop holds vectors of all factors in float32, as `hotfix.train` names them."""
    vector = FLOAT * sum(p.numel() for p in adapter.parameters)
    past = recipe.train.memory if recipe.train.surgery == "orthogonal" else 0
    captions = bank_captions(recipe, denoiser)
    bank, different = len(captions), len(set(captions))
    forgets = len(recipe.files(recipe.forget.images, "forget.images"))
    given = len(recipe.files(recipe.surrogate.images, "surrogate.images"))
    sought = recipe.surrogate.count or (BLENDED if recipe.surrogate.kind == "posterior" else 1)
    looks = forgets * (1 + (given or sought)) * (1 + (VIEWS if recipe.train.augment else 0))
    channels, *sides = denoiser.latent_shape
    height, width = denoiser.size
    words = sum(value.nbytes for value in denoiser.embed([""]).values())
    rows = bank if different > 1 else 1  # one caption alone is one row: hotfix/captions.py
    there = {
        "factors and their average": 2 * vector,
        "gradients and the step": 8 * vector,  # g_f, g_r, what becomes of them, before, move; three while it is held
        "moments of AdamW": 2 * vector,
        "retained gradients": (1 + 2 * past) * vector,  # the last ones are copied when one joins them
        "encoded pictures": FLOAT * channels * sides[0] * sides[1] * (bank + looks),
        "encoded prompts": words * (rows + different + len(recipe.forget.captions) + 2),  # also of other pictures
    }
    if offload.is_on(denoiser.pipe):
        there["the denoiser and the VAE, from host memory"] = weights_of(denoiser.model, denoiser.vae)
    host = {"pictures of what must stay": COMPARED * FLOAT * 3 * height * width * bank}
    return Need(f"building {recipe.name} {recipe.version}", denoiser.device, there, host)


def weights(pipe: Any) -> int:
    """Bytes of all networks of a pipeline, buffers included, on whatever device they are."""
    return weights_of(*pipe.components.values())


def weights_of(*parts: Any) -> int:
    """Bytes of some networks, buffers included; what is no network does not count."""
    networks = [part for part in parts if isinstance(part, nn.Module)]
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    return sum({place: size for tensor in tensors for place, size in stored(tensor).items()}.values())
