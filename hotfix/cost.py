"""What a machine has left, and what a build spent on it: seconds, memory and energy. Imports no torch by itself.

The one door to psutil and to NVML. What cannot be measured is None, and never estimated here.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotfix.errors import HotfixError

if TYPE_CHECKING:
    import torch

GROUP = Path("/sys/fs/cgroup")  # of the container that we are in


def free(device: "torch.device | None" = None) -> int:
    """Bytes that can still be taken on a GPU; for any other device, or None, of the host."""
    if device is not None and device.type == "cuda":
        import torch

        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    import psutil

    left = psutil.virtual_memory().available
    try:
        most, now = (int((GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such group, or one without a limit
        return left
    return min(left, most - now)


def room(what: str, need: int, left: int, where: str, hint: str) -> None:
    """Refuse what cannot fit.

    Args:
        what: will not fit, as the subject of a sentence.
        need: bytes that it takes.
        left: bytes that are free.
        where: "host" or "GPU".
        hint: what takes less.

    Raises:
        HotfixError: more is needed than is free.
    """
    if need > left:
        raise HotfixError(f"{what} takes {gib(need)} of {where} memory, and {gib(left)} are free", hint=hint)


@contextmanager
def enough(what: str, hint: str) -> Iterator[None]:
    """Say in a sentence when the memory of a GPU was not enough: `what` does not fit.

    Raises:
        HotfixError: instead of torch's error.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise HotfixError(f"{what} does not fit in the GPU memory that is free", hint=hint) from error


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def meter(device: "torch.device") -> Callable[[], dict[str, Any]]:
    """Begin to measure; what comes back says what was spent until it is called, as fields of `hotfix.report.Build`."""
    started, energy = time.monotonic(), _joules(device)
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)

    def spent() -> dict[str, Any]:
        now = _joules(device)
        host, gpu = peaks()
        return {
            "seconds": round(time.monotonic() - started, 1),
            "host_bytes": host,
            "gpu_bytes": gpu,
            "gpu_joules": None if now is None or energy is None else round(now - energy, 1),
        }

    return spent


def peaks() -> tuple[int, int | None]:
    """The most bytes that this process ever held: of the host, and of a GPU where there is one."""
    import resource

    import torch

    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return host, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _joules(device: "torch.device") -> float | None:
    """Energy that the whole GPU has taken since its driver was loaded."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    import torch

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except pynvml.NVMLError:  # an old GPU, or one of which a container sees a part
        return None
