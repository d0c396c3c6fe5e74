"""Similarity in the eyes of a network: the cosine of two embeddings. The network is a file on this machine.

Nothing is downloaded: a copy detector (SSCD), a face embedder, CLIP or DINO are named by their path in the recipe.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hotfix.errors import RecipeError
from hotfix.pictures import to_images
from hotfix.recipe import Similarity as Wanted
from hotfix.shapes import PerExample, Picture, Pictures
from hotfix.similarity import Similarity

GROUP = "hotfix.embedders"  # entry points: name -> function(path) -> Embedder

# Pictures (B, 3, H, W) in [-1, 1] to embeddings (B, D), of any length.
Embedder = Callable[[Pictures], Tensor]


def cosine(embed: Embedder, target: Picture) -> Similarity:
    """Cosine similarity of embeddings to the target's, in [-1, 1]."""
    wanted = embed(target[None])

    def similarity(pictures: Pictures) -> PerExample:
        return F.cosine_similarity(embed(pictures), wanted).float()

    return similarity


def embedder(wanted: Wanted, path: Path) -> Embedder:
    """The network that a recipe's [similarity] names.

    Raises:
        RecipeError: it cannot be loaded.
    """
    try:
        match wanted.kind:
            case "torchscript":
                return torchscript(path, wanted.size, wanted.mean, wanted.std)
            case "transformers":
                return transformers_folder(path)
            case _:
                return _plugin(wanted.name)(path)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise RecipeError(
            f"similarity.kind = {wanted.kind!r} cannot load {wanted.name or path.name}: {str(error).splitlines()[0]}",
            hint="similarity.path is a file or folder on this machine, relative to the recipe; nothing is downloaded",
        ) from error


def torchscript(path: Path, size: int, mean: float, std: float) -> Embedder:
    """A TorchScript file that takes (B, 3, size, size) and gives (B, D), such as SSCD or a face embedder.

    Args:
        path: the file.
        size: of the square that pictures are scaled to.
        mean: of all channels, taken off pixels in [0, 1].
        std: of all channels, divided by; 1/255 gives a network its pixels in 0 to 255.
    """
    network = torch.jit.load(str(path), map_location="cpu").eval()

    @torch.no_grad()
    def embed(pictures: Pictures) -> Tensor:
        x = F.interpolate((pictures + 1) / 2, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return network((x - mean) / std)

    return embed


def transformers_folder(path: Path) -> Embedder:
    """A vision model that `save_pretrained` wrote, with its processor: CLIP, DINO, SigLIP."""
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(path, local_files_only=True)
    network: Any = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True).eval()
    network = getattr(network, "vision_model", network)  # of a text-and-vision model

    @torch.no_grad()
    def embed(pictures: Pictures) -> Tensor:
        out = network(**processor(images=to_images(pictures), return_tensors="pt"))
        pooled = getattr(out, "image_embeds", None)
        if pooled is None:
            pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state[:, 0] if pooled is None else pooled

    return embed


def _plugin(name: str) -> Callable[[Path], Embedder]:
    found = entry_points(group=GROUP, name=name)
    if not found:
        installed = ", ".join(sorted(entry.name for entry in entry_points(group=GROUP))) or "none"
        raise KeyError(f"no installed package offers {name!r} as {GROUP}; there are: {installed}")
    return next(iter(found)).load()
