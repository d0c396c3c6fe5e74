"""Compute: rows through the network, counted alike for hotfix and its rivals; seconds and memory.

A unit of cost is one row forward; a row backward counts two (`benchmarks.rivals.problem.Count`). Hotfix's count holds
everything a build does: bank, surrogates, calibration, training, trials, bisection. Rivals get the bank and the
surrogates that hotfix drew for nothing. The cost of one step of a rival is what its docstring states.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.rivals import duo, selective_amnesia
from benchmarks.rivals.problem import Count

# forward and backward rows of a step for every row of its batch; ESD asks the base once more where there are captions
STEP = {
    "negative_gradient": (2, 2),
    "erasediff": (2, 2),
    "siss": (1, 2),
    "negated_lora": (1, 1),
    "esd": (2, 1),
    "duo": (6, 3),
    "retrack": (1, 1),
    "selective_amnesia": (2, 2),
    "munba": (2, 2),
    "plain": (3, 2),
}
RESET = Path("/proc/self/clear_refs")  # Linux: writing 5 lowers the high-water mark to what is held now
STATUS = Path("/proc/self/status")


def cost_of_step(method: str, rows: int, captioned: bool) -> int:
    """Cost of one step of a rival on `rows` rows."""
    forward, backward = STEP[method]
    if method == "esd" and captioned:
        forward += 1
    return rows * (forward + 2 * backward)


def cost_before_steps(method: str, rows: int) -> int:
    """What a rival spends before its first step: SISS's gradient norm, DUO's edits, the Fisher information."""
    match method:
        case "siss":
            return cost_of_step(method, rows, captioned=False)
        case "duo":
            return 2 * duo.PAIRS * duo.EDIT_STEPS
        case "selective_amnesia":
            return 3 * selective_amnesia.SAMPLES
    return 0


def steps_within(budget: int, method: str, rows: int, captioned: bool) -> int:
    """As many steps as the budget pays for, at least one."""
    return max(1, (budget - cost_before_steps(method, rows)) // cost_of_step(method, rows, captioned))


@contextmanager
def counted(model: nn.Module) -> Iterator[Count]:
    """Count every row that goes through a network, whoever sends it, and every gradient that comes back."""
    count = Count()

    def passed(module: nn.Module, args: Any, output: Any) -> None:
        rows = output[0]
        count.forward += len(rows)
        if rows.requires_grad:
            rows.register_hook(count.back)

    handle = model.register_forward_hook(passed)
    try:
        yield count
    finally:
        handle.remove()


@dataclass
class Meter:
    seconds: float = 0.0
    peak_bytes: int = 0  # of the GPU if that is where the model is, else of this process, base and interpreter included


@contextmanager
def metered(device: torch.device) -> Iterator[Meter]:
    """Seconds and peak memory of a block."""
    meter, started = Meter(), time.monotonic()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # elsewhere, or where it is forbidden, the peak is that of the whole run
            RESET.write_text("5")
    yield meter
    meter.peak_bytes = torch.cuda.max_memory_allocated(device) if on_gpu else _high_water()
    meter.seconds = round(time.monotonic() - started, 2)


def _high_water() -> int:
    if STATUS.exists():
        (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
