"""Patches of random factors for any pipeline: what a stack must carry, whoever built it."""

import torch
from torch import nn

from hotfix.beside import innermost
from hotfix.manifest import BaseIdentity, Commitment, Manifest, Scope
from hotfix.patch import A, B, Patch, digest, from_torch
from hotfix.pictures import load
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


def two_ranks(pipe, name: str) -> Patch:
    """A random patch with layers of rank 3 and of rank 2 in turn."""
    parts = [random_patch(pipe, name, seed, rank=rank) for seed, rank in ((1, 3), (2, 2))]
    turn = {layer: i % 2 for i, layer in enumerate(parts[0].layers)}
    entries = {layer + half: parts[i].entries[layer + half] for layer, i in turn.items() for half in (A, B)}
    return Patch(parts[0].manifest.model_copy(update={"digest": digest(entries)}).text(), entries)


def outputs(model: nn.Module, layers: list[str]) -> dict[str, torch.Tensor]:
    """What each of these layers makes of the same random input, whatever wrappers are around it."""
    found = {}
    for name in layers:
        width = innermost(model, name).weight.shape[1]
        shape = (2, width) if isinstance(innermost(model, name), nn.Linear) else (1, width, 4, 4)
        with torch.no_grad():
            found[name] = model.get_submodule(name)(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    return found


def effect(pipe, patch: Patch, put_on) -> dict[str, torch.Tensor]:
    """ΔW·x of every layer: with a reader's adapter on, less without. `put_on` may return the model that carries it."""
    model, prefix = denoiser(pipe), f"{component(pipe)}."
    names = [layer.removeprefix(prefix) for layer in patch.layers]
    before = outputs(model, names)
    after = outputs(put_on() or model, names)
    return {name: after[name] - before[name] for name in names}


@torch.no_grad()
def apart_from_surrogate(denoiser, folder):
    """Mean error of endpoints against the surrogate, from the forget picture at levels where the two can be told."""
    x_f, x_s = (denoiser.encode(load([folder / kind / "one.png"], denoiser.size)) for kind in ("forget", "surrogate"))
    t = torch.linspace(0.5, 1, 16)
    eps = torch.randn((16, *x_f.shape[1:]), generator=torch.Generator().manual_seed(1))
    rows = denoiser.embed(["a"] * 16)
    return (denoiser.x_hat(denoiser.noised(x_f, t, eps), t, rows) - x_s).square().mean()
