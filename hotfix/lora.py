"""LoRA layers for training: attach, switch off, read, detach; and those of others, read. The only file that imports
peft.

Patches are *trained* through peft and *put on* through `hotfix.beside`: a peft adapter is state that every host call
rewrites, which is fine inside a build and not in production.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig
from peft.functional import (
    delete_adapter,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from hotfix.errors import HotfixError, RecipeError
from hotfix.shapes import Flat
from hotfix.weights import patchable

ADAPTER = "hotfix_training"


@dataclass(frozen=True)
class Adapter:
    """Trainable LoRA factors on a model: float32, alpha = rank, B = 0 at the start."""

    model: nn.Module
    parameters: tuple[nn.Parameter, ...]

    @contextmanager
    def off(self) -> Iterator[None]:
        """The unpatched model, from the same weights: the teacher."""
        layers = [layer for layer in self.model.modules() if isinstance(layer, BaseTunerLayer)]
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False

    def flat(self) -> Flat:
        """A copy of all factors as one vector."""
        return torch.cat([p.detach().flatten() for p in self.parameters])

    def gradient(self, loss: Tensor) -> Flat:
        """The gradient of a scalar loss with respect to all factors, as one vector."""
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.parameters)])

    def set_flat(self, vector: Flat) -> None:
        """Write all factors from one vector."""
        torch.nn.utils.vector_to_parameters(vector, self.parameters)

    def places(self) -> dict[str, slice]:
        """Where in that vector the A of every adapted layer lies, by the layer's name."""
        found, start = {}, 0
        for name, p in self.model.named_parameters():
            if ADAPTER in name:
                layer, is_a, _ = name.partition(".lora_A.")
                if is_a:
                    found[layer] = slice(start, start + p.numel())
                start += p.numel()
        return found

    def scale(self, strength: float) -> None:
        """Multiply the whole patch: every B by `strength`."""
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                if "lora_B" in name:
                    p.mul_(strength)

    def tensors(self) -> dict[str, Tensor]:
        """The factors under peft's names without a component: `….lora_A.weight`, `….lora_B.weight`."""
        state = get_peft_model_state_dict(self.model, adapter_name=ADAPTER, save_embedding_layers=False)
        return {name: tensor.detach().float().cpu().clone() for name, tensor in state.items()}


@contextmanager
def attached(model: nn.Module, targets: str, rank: int, seed: int) -> Iterator[Adapter]:
    """Put trainable factors on every Linear and plain Conv2d whose name matches, and take them off again, exactly.

    Raises:
        RecipeError: the pattern is none, matches nothing, or matches what a patch cannot act on.
        HotfixError: somebody's adapter is on it, or its four-bit layers are on a CPU, where a gradient would end at
            them without a word.
    """
    if any(type(p).__name__ == "Params4bit" and p.device.type == "cpu" for p in model.parameters()):
        raise HotfixError("nothing can be learnt through four-bit weights on a CPU", hint="eight bits, or a GPU")
    with restored(model):
        check(model, targets)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model, ADAPTER)
        parameters = tuple(p for name, p in model.named_parameters() if ADAPTER in name)
        for p in parameters:
            p.data = p.data.float()
        yield Adapter(model, parameters)


def check(model: nn.Module, targets: str) -> None:
    """Refuse a pattern that names anything but layers that a patch can act on.

    Raises:
        RecipeError: it is no pattern, names nothing, or names another kind of layer.
    """
    said, hint = f"train.targets = {targets!r}", "a regular expression over the names of Linear and Conv2d layers"
    try:
        named = {name: layer for name, layer in model.named_modules() if name and re.fullmatch(targets, name)}
    except re.error as error:
        raise RecipeError(f"{said} is no regular expression: {error}", hint=hint) from error
    if not named:
        raise RecipeError(f"{said} matches no layer of the {type(model).__name__}", hint=hint)
    for name, layer in named.items():
        if not patchable(layer):
            what = layer if isinstance(layer, nn.Conv2d) else f"a {type(layer).__name__}"
            raise RecipeError(
                f"{said} matches {name}, which is {what}",
                wanted="Linear layers, and Conv2d layers of one group, without dilation, padded with zeros",
                hint=f"{hint}, and no others",
            )


def refuse_others(*networks: Any) -> None:
    """Refuse networks that carry somebody's adapters: what takes ours off again would take theirs along.

    Raises:
        HotfixError: one of them does; nothing was touched.
    """
    for network in networks:
        layers = network.modules() if isinstance(network, nn.Module) else ()
        if carried := [layer for layer in layers if isinstance(layer, BaseTunerLayer)]:
            names = ", ".join(carried[0]._all_available_adapter_names())
            raise HotfixError(
                f"the {type(network).__name__} carries adapters: {names}",
                wanted="a pipeline without any",
                hint="pipe.unload_lora_weights(), and pipe.fuse_lora() before it if they are to stay",
            )


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Without adapters afterwards, and every parameter trainable or not as it was: whatever peft did in between.

    Raises:
        HotfixError: it is not without adapters before.
    """
    refuse_others(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        yield
    finally:
        delete_adapter(model, ADAPTER, prefix="lora_")
        recurse_remove_peft_layers(model)
        if hasattr(model, "peft_config"):
            del model.peft_config
        for name, p in model.named_parameters():
            p.requires_grad_(flags[name])


def put_on(model: nn.Module, factors: Mapping[str, Tensor], config: Path | Mapping[str, Any]) -> None:
    """Put plain factors on the layers that they name, as peft does.

    Args:
        model: without adapters.
        factors: under peft's names without a component.
        config: a folder with an adapter_config.json, or what would stand in it.
    """
    said = LoraConfig.from_pretrained(str(config)) if isinstance(config, Path) else LoraConfig(**config)
    inject_adapter_in_model(said, model, ADAPTER, state_dict=dict(factors))
    set_peft_model_state_dict(model, factors, ADAPTER)


def taken(model: nn.Module, adapter: str = ADAPTER) -> dict[str, Tensor]:
    """The factors of an adapter that somebody put on, as `Adapter.tensors`, with its scale in B: alpha = rank."""
    found: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and adapter in layer.scaling and not layer.lora_variant.get(adapter):
            a, b = (getattr(layer, half)[adapter].weight.detach().float() for half in ("lora_A", "lora_B"))
            # A copy: readers let the queries, keys and values of one fused layer share theirs.
            found |= {f"{name}.lora_A.weight": a.clone(), f"{name}.lora_B.weight": b * layer.scaling[adapter]}
    return found
