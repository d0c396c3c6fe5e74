"""Ways of training: a LoRA on the layers that a patch would adapt, or all weights of the denoiser. Both leave no
trace.

"full" trains clones, and puts the very tensors that were there back: nothing is ever written to the originals.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch import nn

from benchmarks.rivals.problem import Problem, Space
from hotfix.denoiser import Denoiser
from hotfix.lora import attached
from hotfix.shapes import Latents

Mode = Literal["lora", "full"]
Opened = tuple[tuple[nn.Parameter, ...], Callable[[], AbstractContextManager[None]], Callable[[float], None]]


@contextmanager
def opened(
    denoiser: Denoiser,
    mode: Mode,
    *,
    x_f: Latents,
    x_s: Latents,
    x_r: Latents,
    forget: Sequence[str] = (),
    retain: Sequence[str],
    seed: int,
    rank: int = 8,
    space: Space = "own",
) -> Iterator[Problem]:
    """Open a denoiser for training, and close it as it was: measure inside the block.

    Args:
        denoiser: of the pipeline to train; in "full" mode its weights must be float32.
        mode: "lora" or "full".
        x_f: forget latents, (N, C, H, W).
        x_s: surrogate latents, (K, C, H, W).
        x_r: retained latents, (R, C, H, W).
        forget: captions of the forget pictures; none for a request without a prompt.
        retain: R captions, one for each retained picture; read only if the model takes captions.
        seed: of every draw, and of the LoRA factors.
        rank: of the LoRA.
        space: where errors are squared.

    Raises:
        ValueError: captions that do not pair up with the retained pictures, or weights too coarse to fine-tune.
    """
    if denoiser.captioned and len(retain) != len(x_r):
        raise ValueError(f"{len(retain)} captions for {len(x_r)} retained pictures; wanted one for each")
    conditions = {
        "forget": denoiser.embed(list(forget) or [""]),
        "empty": denoiser.embed([""]),
        "retain": denoiser.embed(list(retain)),
    }
    way = _lora(denoiser, rank, seed) if mode == "lora" else _full(denoiser.model)
    with way as (parameters, base, scale):
        generator = torch.Generator().manual_seed(seed)
        yield Problem(
            denoiser,
            x_f,
            x_s,
            x_r,
            **conditions,
            parameters=parameters,
            base=base,
            scale=scale,
            generator=generator,
            space=space,
        )


@contextmanager
def _lora(denoiser: Denoiser, rank: int, seed: int) -> Iterator[Opened]:
    with attached(denoiser.model, denoiser.targets, rank, seed) as adapter:
        yield adapter.parameters, adapter.off, adapter.scale


@contextmanager
def _full(model: nn.Module) -> Iterator[Opened]:
    parameters = tuple(model.parameters())
    if any(p.dtype != torch.float32 for p in parameters):
        raise ValueError("the denoiser is not float32; full fine-tuning at 5e-6 would drown in rounding: load it so")
    originals = [p.data for p in parameters]
    flags = [p.requires_grad for p in parameters]

    def put(tensors: Sequence[torch.Tensor]) -> None:
        for p, tensor in zip(parameters, tensors, strict=True):
            p.data = tensor

    @contextmanager
    def base() -> Iterator[None]:
        trained = [p.data for p in parameters]
        put(originals)
        try:
            yield
        finally:
            put(trained)

    def scale(strength: float) -> None:
        for p, original in zip(parameters, originals, strict=True):
            p.data.copy_(torch.lerp(original, p.data, strength))

    try:
        put([p.data.clone() for p in parameters])
        for p in parameters:
            p.requires_grad_(True)
        yield parameters, base, scale
    finally:
        put(originals)
        for p, flag in zip(parameters, flags, strict=True):
            p.grad = None
            p.requires_grad_(flag)
