"""Patches of random factors for any pipeline: what a stack must carry, whoever built it."""

import torch
from torch import nn

from hotfix.beside import innermost
from hotfix.manifest import BaseIdentity, Commitment, Manifest, Scope
from hotfix.patch import A, B, Patch, digest, from_torch
from hotfix.sketch import sketch


def component(pipe) -> str:
    return "unet" if getattr(pipe, "unet", None) is not None else "transformer"


def denoiser(pipe) -> nn.Module:
    return getattr(pipe, component(pipe))


def layers(model: nn.Module) -> list[str]:
    """Attention and feed-forward layers, and convolutions of residual blocks."""
    words = (".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.net.2", ".conv1", ".proj_out", ".add_k_proj")
    return [
        name
        for name, layer in model.named_modules()
        if name.endswith(words) and isinstance(layer, nn.Linear | nn.Conv2d) and min(layer.weight.shape[:2]) > 3
    ]


def random_patch(
    pipe, name: str, seed: int, rank: int = 2, size: float = 0.2, every: int = 1, version: str = "1.0.0", **relations
) -> Patch:
    """A patch whose ΔW has `size` times the norm of each weight; `every` leaves layers out."""
    model, draw = denoiser(pipe), torch.Generator().manual_seed(seed)
    tensors, weights = {}, {}
    for layer in layers(model)[seed % every :: every]:
        weight = weights[layer] = innermost(model, layer).weight
        out, *rest = weight.shape
        a = torch.randn((rank, *rest), generator=draw)
        b = torch.randn((out, rank, *(1 for _ in rest[1:])), generator=draw)
        change = b.flatten(1) @ a.flatten(1)
        b *= size * weight.detach().norm() / change.norm()
        tensors |= {f"{component(pipe)}.{layer}{A}": a, f"{component(pipe)}.{layer}{B}": b}
    entries = from_torch(tensors)
    manifest = Manifest(
        name=name,
        version=version,
        digest=digest(entries),
        base=BaseIdentity(
            repo="pico",
            pipeline_class=type(pipe).__name__,
            component=component(pipe),
            component_class=type(model).__name__,
            sketch=sketch(weights),
        ),
        recipe={},
        scope=Scope(t_lo=0.5, height=16, width=16, scheduler=type(pipe.scheduler).__name__, call={}),
        targets=[Commitment(salt="0" * 32, sha256="0" * 64)],
        strength=1.0,
        created="2026-01-01T00:00:00Z",
        tool="tests",
        **relations,
    )
    return Patch(manifest.text(), entries)
