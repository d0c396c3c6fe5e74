"""Folded: ΔW = B·A added to the weights of a copy, once, in float32. For saved pipelines that must not need hotfix."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hotfix import beside
from hotfix.errors import SaveError, StackError
from hotfix.patch import A, B
from hotfix.stack import Stack

LEAST_SURVIVAL = 0.9  # of the change, measured after rounding to the dtype of the saved weights


def delta(a: Tensor, b: Tensor) -> Tensor:
    """ΔW of a Linear (out, in) or a Conv2d (out, in, kh, kw) from its two factors, in float32."""
    return (b.float().flatten(1) @ a.float().flatten(1)).reshape(b.shape[0], *a.shape[1:])


def survival(changes: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype) -> float:
    """The share of ΔW that is left after W + ΔW is rounded to `dtype`, over all (W, ΔW) pairs: 1 is all of it.

        1 - ‖round(W + ΔW) - round(W) - ΔW‖ / ‖ΔW‖,  at least 0

    A small patch drowns in bfloat16: the step between neighbouring numbers is 2^-8 of the weight.
    """
    lost, whole = 0.0, 0.0
    for weight, change in changes:
        w = weight.detach().float().cpu()
        lost += float(((w + change).to(dtype).float() - w.to(dtype).float() - change).square().sum())
        whole += float(change.square().sum())
    return max(0.0, 1 - (lost / whole) ** 0.5) if whole else 1.0


def fold(stack: Stack, pipe: Any, dtype: torch.dtype) -> None:
    """Write a stack into the weights of a pipeline that is about to be saved in `dtype`. There is no way back.

    Raises:
        HotfixError: `stack.check` found a problem.
        StackError: too little of the change would survive the rounding.
    """
    stack.check(pipe)
    changes: dict[Tensor, Tensor] = {}
    for patch in stack.patches:
        model = getattr(pipe, patch.manifest.base.component)
        for name in patch.layers:
            weight = beside.innermost(model, name.removeprefix(f"{patch.manifest.base.component}.")).weight
            change = delta(patch.tensors[name + A], patch.tensors[name + B])
            changes[weight] = changes.get(weight, torch.zeros_like(change)) + change
    left = survival(changes.items(), dtype)
    if left < LEAST_SURVIVAL:
        raise StackError(
            f"only {left:.0%} of the change would survive in {str(dtype).removeprefix('torch.')}",
            wanted=f"at least {LEAST_SURVIVAL:.0%}",
            hint="save in float32 (--dtype float32), or put the stack on at run time instead",
        )
    with torch.no_grad():
        for weight, change in changes.items():
            weight.copy_(weight.float().cpu() + change)


def save_folded(stack: Stack, pipe: Any, out: Path, dtype: str) -> Path:
    """Fold a stack into a pipeline and save it as `out`, whole or not at all.

    Raises:
        HotfixError: the stack does not fit, or too little of it would survive.
        SaveError: the folder could not be written; nothing half-written is left.
    """
    kind = getattr(torch, dtype)
    fold(stack, pipe, kind)
    staging = out.with_name(f".{out.name}.partial")
    try:
        pipe.to(kind).save_pretrained(staging)
        if out.exists():
            out.rmdir()
        staging.rename(out)
    except OSError as error:
        raise SaveError(
            f"cannot write {out}: {error.strerror}", hint="free some space or choose -o elsewhere"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out
