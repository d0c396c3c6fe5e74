"""Picture files in, tensors out; and the commitment to a picture that a manifest may carry."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hotfix.errors import RecipeError
from hotfix.manifest import Commitment
from hotfix.shapes import Picture, Pictures


def load(paths: Iterable[Path], size: tuple[int, int]) -> Pictures:
    """Read pictures as pixels in [-1, 1], at the (height, width) the base draws.

    They are turned as their EXIF says, because viewers show them so. A larger picture of the same proportions is
    reduced; nothing is cropped, stretched or enlarged: that would be another picture than the one complained about.

    Raises:
        RecipeError: unreadable, a mode other than RGB or grey, too small, or other proportions.
    """
    return torch.stack([_load(path, *size) for path in paths])


def _load(path: Path, height: int, width: int) -> Picture:
    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise RecipeError(f"{path.name} is not a picture that can be read", hint="PNG, JPEG and WebP work") from error
    return _load_image(image, height, width, path.name)


def _load_image(image: Image.Image, height: int, width: int, name: str) -> Picture:
    if image.mode not in ("RGB", "L"):
        raise RecipeError(
            f"{name} has mode {image.mode}",
            wanted="RGB (or L, grey)",
            hint="flatten transparency or palettes first: they mean different pictures to different readers",
        )
    same = image.width * height == image.height * width
    if not same or image.width < width:
        raise RecipeError(
            f"{name} is {image.width}x{image.height}",
            wanted=f"{width}x{height}, as the base draws, or larger in the same proportions",
            hint="crop or enlarge it yourself, so that you see what is being forgotten",
        )
    image = image.convert("RGB")
    if image.width > width:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return from_image(image)


def from_image(image: Image.Image) -> Picture:
    """An RGB picture as pixels in [-1, 1], shape (3, H, W)."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Pixels in [-1, 1], shape (B, 3, H, W), as PIL images."""
    data = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(row) for row in data]


def commitment(picture: Picture, name: str, version: str) -> Commitment:
    """A salted hash of the picture's pixels: its owner can recognise it, the file does not show it.

    The salt differs from patch to patch and follows from the picture, so that the same build gives the same bytes.
    """
    pixels = to_images(picture[None])[0].tobytes()
    salt = hashlib.sha256(f"hotfix salt\0{name}\0{version}\0".encode() + pixels).hexdigest()[:32]
    return Commitment(salt=salt, sha256=hashlib.sha256(bytes.fromhex(salt) + pixels).hexdigest())
