"""Text encoders wait in host memory while a denoiser learns: they and an optimiser are never on a GPU together."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hotfix import offload
from hotfix.denoiser import Denoiser


@contextmanager
def aside(denoiser: Denoiser) -> Iterator[None]:
    """Take the text encoders off the accelerator, and put them back, bit for bit.

    On a CPU nothing is moved. Left where they are: quantised ones, which may not be moved, and what accelerate moves;
    an offloaded pipeline holds the denoiser and its VAE meanwhile (`hotfix.offload`).
    """
    if denoiser.guidance != 1.0:
        _ = denoiser.unguided  # which a trial needs, when there is no encoder to ask
    device = denoiser.device
    waiting = [part for part in encoders(denoiser) if device.type != "cpu" and part.device == device]
    for encoder in waiting:
        encoder.to("cpu")
    if waiting:
        torch.cuda.empty_cache()
    try:
        with offload.held(denoiser.pipe, denoiser.model):
            yield
    finally:
        for encoder in waiting:
            encoder.to(device)


def encoders(denoiser: Denoiser) -> list[nn.Module]:
    """The text encoders of a pipeline that may be moved."""
    parts = [part for name, part in denoiser.pipe.components.items() if name.startswith("text_encoder")]
    moved = [part for part in parts if isinstance(part, nn.Module) and not hasattr(part, "_hf_hook")]
    return [part for part in moved if getattr(part, "quantization_method", None) is None]
