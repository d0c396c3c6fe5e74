"""A patched copy of a pipeline on disk, for those who must not need hotfix: the stack is in its weights for good."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hotfix import beside
from hotfix.errors import SaveError
from hotfix.fold import delta, refuse_drowning, survival
from hotfix.patch import UNWRITTEN, A, B
from hotfix.stack import Stack
from hotfix.weights import refuse_unwritable


def fold(stack: Stack, pipe: Any, dtype: torch.dtype, allow_related_base: bool) -> None:
    """Write a stack into the weights of a pipeline that is about to be saved in `dtype`. There is no way back.

    Raises:
        HotfixError: `stack.check` found a problem.
        StackError: too little of the change would survive the rounding, or the weights are quantised or split up.
    """
    stack.check(pipe, allow_related_base=allow_related_base)
    changes: dict[Tensor, Tensor] = {}
    for patch in stack.patches:
        model = getattr(pipe, patch.manifest.base.component)
        for name in patch.layers:
            layer = beside.innermost(model, name.removeprefix(f"{patch.manifest.base.component}."))
            refuse_unwritable([layer])
            weight = layer.weight
            change = delta(patch.tensors[name + A], patch.tensors[name + B])
            changes[weight] = changes.get(weight, torch.zeros_like(change)) + change
    refuse_drowning(survival(changes.items(), dtype), dtype)
    with torch.no_grad():
        for weight, change in changes.items():
            weight.copy_(weight.float().cpu() + change)


def save_folded(
    stack: Stack,
    pipe: Any,
    out: Path,
    dtype: str,
    *,
    allow_related_base: bool = False,
    ready: Callable[[], object] = lambda: None,
) -> Path:
    """Fold a stack into a pipeline and save it as `out`, whole or not at all.

    `ready` is called when all is on the disk, under another name as yet; what it raises leaves nothing behind.

    Raises:
        HotfixError: the stack does not fit, or too little of it would survive.
        SaveError: the folder could not be written; nothing half-written is left.
    """
    kind = getattr(torch, dtype)
    fold(stack, pipe, kind, allow_related_base)
    staging = out.absolute().with_name(f".{out.absolute().name}.partial")
    try:
        if staging.exists():  # of one that was killed
            shutil.rmtree(staging)
        pipe.to(kind).save_pretrained(staging)
        ready()
        if out.exists():
            out.rmdir()
        staging.rename(out)
    except UNWRITTEN as error:
        why = getattr(error, "strerror", None) or error
        raise SaveError(f"cannot write {out}: {why}", hint="free some space or choose -o elsewhere") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out
