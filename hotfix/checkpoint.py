"""The state of an unfinished build: factors, optimiser and counters in one safetensors file. No picture is in it."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hotfix import container
from hotfix.patch import from_torch, to_torch
from hotfix.surgery import Retained


def keep(
    path: Path,
    flat: Tensor,
    average: Tensor,
    optimizer: torch.optim.Optimizer,
    seen: Retained,
    state: Mapping[str, float],
) -> None:
    """Write the state, whole or not at all."""
    moments = optimizer.state[flat]
    tensors = {"flat": flat.data, "average": average, "mean": seen.mean, "last": seen.last}
    tensors |= {"m": moments["exp_avg"], "v": moments["exp_avg_sq"], "n": moments["step"]}
    container.write_atomically(path, container.dump({"state": json.dumps(state)}, from_torch(tensors)))


def restore(
    path: Path, flat: Tensor, average: Tensor, optimizer: torch.optim.Optimizer, seen: Retained
) -> dict[str, float]:
    """Read a state into the factors, their average, the optimiser and what was retained; return the counters."""
    metadata, entries = container.read(path)
    tensors = to_torch(entries)
    flat.data.copy_(tensors["flat"])
    average.copy_(tensors["average"])
    seen.mean.copy_(tensors["mean"])
    seen.last.copy_(tensors["last"])
    moments = {"exp_avg": tensors["m"].to(flat.device), "exp_avg_sq": tensors["v"].to(flat.device)}
    optimizer.state[flat] = {**moments, "step": tensors["n"]}
    return json.loads(metadata["state"])
