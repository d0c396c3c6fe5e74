"""Pipelines whose parts wait in host memory until they are asked: diffusers' model offload, `base.offload`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hotfix.errors import HotfixError


def is_on(pipe: Any) -> bool:
    """Whether the parts of a pipeline wait in host memory."""
    return bool(getattr(pipe, "_all_hooks", None))


def device(part: nn.Module) -> torch.device:
    """Where a network computes: where it lies, or where it is moved to when it is asked, as a whole or in groups."""
    if (group := _group(part)) is not None:
        return torch.device(group.onload_device)
    place = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
    return next(part.parameters()).device if place is None else torch.device(place)


def _group(part: nn.Module) -> Any:
    """The first of the groups that diffusers moves, if it does."""
    hooks = (getattr(module, "_diffusers_hook", None) for module in part.modules())
    moving = (one.get_hook("group_offloading") for one in hooks if one is not None)
    return next((one.group for one in moving if one is not None), None)


def on_disk(part: nn.Module) -> bool:
    """Whether diffusers keeps a network's weights in files: between its calls what is in memory is not they."""
    return bool(getattr(_group(part), "offload_to_disk_path", None))


def refuse_pieces(part: nn.Module) -> None:
    """Raise HotfixError where a network is moved in pieces: a gradient would not find the weights that it needs."""
    if _group(part) is not None or any(p.device.type == "meta" for p in part.parameters()):
        raise HotfixError(
            f"the weights of the {type(part).__name__} are offloaded in pieces, and nothing can be learnt through them",
            wanted="a network that is moved whole",
            hint="base.offload = true, or pipe.enable_model_cpu_offload()",
        )


@contextmanager
def held(pipe: Any, network: nn.Module) -> Iterator[None]:
    """Keep the network that learns, and the VAE, where they compute; all other parts stay in host memory.

    Nothing is moved under factors that are learnt: a copy of them would be left behind. A pipeline that is not
    offloaded is left alone.
    """
    if not is_on(pipe):
        yield
        return
    place, vae = device(network), getattr(pipe, "vae", None)
    pipe.remove_all_hooks()
    try:
        for part in pipe.components.values():
            there = place if part is network or part is vae else torch.device("cpu")
            if isinstance(part, nn.Module) and any(p.device.type != there.type for p in part.parameters()):
                part.to(there)
        yield
    finally:
        pipe.enable_model_cpu_offload(device=pipe._offload_device)
