"""One build on several processes, as `accelerate launch` starts them: all run the same program, from the same seeds.

Rows are shared out, and what is computed of them is put together again, so that every process goes on with the same
numbers. What decides how the program goes on is the first process's word. Alone, all of this does nothing.
"""

import atexit
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, parse_flag_from_env, reduce
from torch import Tensor

from hotfix.errors import RecipeError

T = TypeVar("T")


@cache
def state() -> PartialState:
    """What accelerate knows of this process. Its environment variables decide, the device among them."""
    found = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if found.num_processes > 1:
        atexit.register(found.destroy_process_group)  # or a thread of it may abort a process that is done
    return found


def device() -> torch.device:
    """The accelerator of this process where there is one, unless ACCELERATE_USE_CPU says otherwise."""
    return state().device


def first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return state().is_main_process


def count() -> int:
    """How many there are."""
    return state().num_processes


def several() -> bool:
    """Whether there are others."""
    return count() > 1


def split() -> bool:
    """Whether they are to share a base's weights out (`hotfix.sharded`): `accelerate launch --use_fsdp` asks for it."""
    return several() and bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def spread(rows: int, of: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """All rows of something, computed in equal shares: `of` is asked for the rows of this process, on any device."""
    share = -(-rows // count())
    begin = state().process_index * share
    mine = of([min(row, rows - 1) for row in range(begin, begin + share)])  # the last share is filled up
    return gather(mine.to(device()).contiguous())[:rows].to(mine.device)


def share(rows: int, name: str, micro: int = 0) -> list[slice]:
    """The rows that this process learns from, `micro` of them at once, or all where that is 0.

    Every process gets as many parts: where weights are shared out all of them ask the network equally often.

    Raises:
        RecipeError: there are not as many rows as processes, or as their parts.
    """
    if rows < count():
        raise RecipeError(f"{name} = {rows}, on {count()} processes", wanted="a row for each", hint="launch fewer")
    mine, most = state().process_index, -(-rows // count())
    first, end = rows * mine // count(), rows * (mine + 1) // count()
    parts = -(-most // (micro or most))
    if rows // count() < parts:
        raise RecipeError(
            f"{name} = {rows} and train.micro_batch = {micro}, on {count()} processes",
            wanted="a row for each of them every time",
            hint=f"{name} = {parts * count()}, or a larger train.micro_batch",
        )
    edges = [first + (end - first) * part // parts for part in range(parts + 1)]
    return [slice(*edge) for edge in pairwise(edges)]


def total(*vectors: Tensor) -> Sequence[Tensor]:
    """The sums of some vectors over all processes, in one message."""
    if not several():
        return vectors
    return reduce(torch.cat(vectors), reduction="sum").split([len(vector) for vector in vectors])


def agreed(value: T) -> T:
    """The first process's value: last bits may differ between machines, and all have to go on alike."""
    return broadcast_object_list([value])[0] if several() else value
