"""Captions to conditions, through a pipeline's own encoders: each of many alike once, and not too many at a time."""

from typing import Any

import torch
from torch import Tensor

from hotfix.families import Call, Captions, Family, Size

# Bytes of conditions made at once, for an encoder holds many times as many meanwhile: 24 captions of SD 3 in 16 bits.
TOGETHER = 2**26


def encode(family: Family, pipe: Any, captions: Captions, size: Size, call: Call) -> dict[str, Tensor]:
    """Conditions, one row for every caption; those of one caption alone are the same memory.

    The first is encoded once more where there are others, to see how large its conditions are.

    Args:
        family: of the pipeline.
        pipe: for its encoders.
        captions: many may be the same.
        size: height and width of a drawn picture, in pixels.
        call: how the pipeline is called in production.
    """
    once = list(dict.fromkeys(captions))
    rows = family.rows(pipe, once[:1], size, call)
    if len(once) == 1:
        return {key: value.expand(len(captions), *value.shape[1:]) for key, value in rows.items()}
    together = TOGETHER // max(1, sum(value.nbytes for value in rows.values())) or 1
    parts = [family.rows(pipe, once[i : i + together], size, call) for i in range(0, len(once), together)]
    rows = {key: torch.cat([part[key] for part in parts]) for key in rows}
    if len(once) == len(captions):
        return rows
    place = {caption: i for i, caption in enumerate(once)}
    return {key: value[[place[caption] for caption in captions]] for key, value in rows.items()}
