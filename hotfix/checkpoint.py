"""The state of an unfinished build: factors, optimiser and counters in one safetensors file. No picture is in it."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hotfix import container
from hotfix.patch import from_torch, to_torch
from hotfix.recipe import Recipe
from hotfix.stack import Stack
from hotfix.surgery import Retained
from hotfix.weights import sketched


def path(folder: Path, recipe: Recipe, model: nn.Module, stack: Stack) -> Path:
    """Where the state of this recipe, with these pictures, on these weights and patches is kept, for no other build.

    Nor for another version of hotfix: it would go on with another loop.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    weights = {name: round(number, 3) for name, number in sketched(layers).items()}  # last digits vary with the threads
    wanted = recipe.model_dump(mode="json", exclude={"forget": {"held_out"}})  # those are never trained on
    facts = [version("diffusion-hotfix"), wanted, weights, [patch.id for patch in stack.patches]]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for key, files in recipe.pictures().items():
        for file in files if key != "forget.held_out" else ():
            digest.update(file.read_bytes())
    return folder / f"{recipe.name}-{recipe.version}-{digest.hexdigest()[:12]}.state"


def keep(
    file: Path,
    flat: Tensor,
    average: Tensor,
    optimizer: torch.optim.Optimizer,
    seen: Retained,
    state: Mapping[str, Any],
) -> None:
    """Write the state, whole or not at all."""
    moments = optimizer.state[flat]
    tensors = {"flat": flat.data, "average": average, "mean": seen.mean, "last": seen.last}
    tensors |= {"m": moments["exp_avg"], "v": moments["exp_avg_sq"], "n": moments["step"]}
    container.write_atomically(file, container.dump({"state": json.dumps(state)}, from_torch(tensors)))


def restore(
    file: Path, flat: Tensor, average: Tensor, optimizer: torch.optim.Optimizer, seen: Retained
) -> dict[str, Any]:
    """Read a state into the factors, their average, the optimiser and what was retained; return the counters."""
    metadata, entries = container.read(file)
    tensors = to_torch(entries)
    flat.data.copy_(tensors["flat"])
    average.copy_(tensors["average"])
    seen.mean.copy_(tensors["mean"])
    seen.last.copy_(tensors["last"])
    moments = {"exp_avg": tensors["m"].to(flat.device), "exp_avg_sq": tensors["v"].to(flat.device)}
    optimizer.state[flat] = {**moments, "step": tensors["n"]}
    return json.loads(metadata["state"])
