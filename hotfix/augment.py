"""Another view of a picture: shifted, zoomed, turned, lit otherwise or mirrored, a little. Pixels in, pixels out.

A forget picture and its surrogates are changed by one and the same view, so that what leads from one to the other stays
what it was.
"""

import math
from collections.abc import Collection

import torch
from torch.nn import functional as F

from hotfix.recipe import View
from hotfix.shapes import Pictures

SHIFT = 0.1  # of a side, each way
ZOOM = 0.1  # larger or smaller
TURN = 8.0  # degrees
LIGHT = 0.12  # of the whole range, brighter or darker, and of the contrast


def augmented(pictures: Pictures, kinds: Collection[View], seed: int) -> Pictures:
    """One random view of every picture, the same for all of them.

    What comes in at an edge is the edge's own colour. A seed draws all kinds of change whether they are asked for or
    not: naming one more leaves the others as they were.

    Args:
        pictures: (B, 3, H, W) in [-1, 1].
        kinds: of change that may happen; none of them gives the pictures back, but for rounding.
        seed: of the view.
    """
    generator = torch.Generator().manual_seed(seed)
    right, down, nearer, turned, lighter, harder, mirrored = (2 * torch.rand(7, generator=generator) - 1).tolist()
    if "mirror" in kinds and mirrored > 0:
        pictures = pictures.flip(-1)
    height, width = pictures.shape[-2:]
    angle = math.radians(TURN * turned) if "turn" in kinds else 0.0
    scale = 1 + ZOOM * nearer if "zoom" in kinds else 1.0
    x, y = (2 * SHIFT * right, 2 * SHIFT * down) if "shift" in kinds else (0.0, 0.0)
    cos, sin, wide = math.cos(angle) / scale, math.sin(angle) / scale, width / height
    matrix = torch.tensor([[cos, -sin / wide, x], [sin * wide, cos, y]]).expand(len(pictures), 2, 3)
    grid = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    pictures = F.grid_sample(pictures, grid, mode="bicubic", padding_mode="border", align_corners=False)
    if "light" in kinds:
        pictures = (1 + LIGHT * harder) * pictures + 2 * LIGHT * lighter
    return pictures.clamp(-1, 1)
