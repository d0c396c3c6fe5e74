"""A base that does not fit on one device: the processes of a launch share its denoiser's weights out (FSDP).

Every process keeps its part of every weight. Those of a block are gathered when it is asked, and let go of afterwards,
so all processes have to ask the network equally often. Factors are small, and whole everywhere.
"""

import warnings

import torch
from torch import nn
from torch.distributed import get_world_size
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard(model: nn.Module, device: torch.device) -> None:
    """Keep this process's part of a denoiser's weights alone, on its device; nothing of them is trained from then on.

    A block is what diffusers names as one (`_no_split_modules`). Where it names none all weights are gathered at once,
    which takes as much memory as the whole while the network is asked.

    Args:
        model: with all its weights, on the host: no device ever holds more than a block of it.
        device: of this process; each has its own, or is on the CPU.
    """
    # A block that puts out a view of its states: nothing writes into those, and its weights are gathered all the same.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    model.requires_grad_(False)
    mesh = init_device_mesh(device.type, (get_world_size(),))
    blocks = getattr(model, "_no_split_modules", None) or ()
    for part in reversed(list(model.modules())):  # from within: what a block shares out is not its parent's any more
        name = type(part).__name__
        if part is model or name in blocks:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
            type(part).__name__ = name  # torch's subclass has another, and manifests hold the name
