"""The pictures that the bundled bases were trained on: one PNG of 32x32 tiles for each, and their names in order."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

HERE = Path(__file__).parent
SIDE = 32


def tiles(name: str) -> tuple[list, Tensor]:
    """Entries of NAME.json, and the pictures of NAME.png in the same order, (N, 3, 32, 32) in [-1, 1]."""
    entries = json.loads((HERE / f"{name}.json").read_text())
    atlas = torch.from_numpy(np.array(Image.open(HERE / f"{name}.png").convert("RGB"))).permute(2, 0, 1)
    pictures = atlas.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE).permute(1, 2, 0, 3, 4).reshape(-1, 3, SIDE, SIDE)
    return entries, pictures[: len(entries)].float() / 127.5 - 1
