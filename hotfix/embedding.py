"""Similarity in the eyes of a network: the cosine of two embeddings. The network is a file on this machine.

Nothing is downloaded: a copy detector (SSCD), a face embedder, CLIP or DINO are named by their path in the recipe.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hotfix.errors import RecipeError
from hotfix.pictures import from_image, to_images
from hotfix.recipe import Similarity as Wanted
from hotfix.shapes import PerExample, Picture, Pictures
from hotfix.similarity import UNDETECTED, Similarity

GROUP = "hotfix.embedders"  # entry points: name -> function(path) -> Embedder

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What such networks were trained on: side in pixels, mean and deviation of pixels in [0, 1], and how they are scaled.
FED: Mapping[str, tuple[int, Sequence[float], Sequence[float], Image.Resampling]] = {
    "sscd": (288, *IMAGENET, Image.Resampling.BILINEAR),  # Pizzi et al. 2022, arXiv:2202.10261, and its code
    "face": (112, (0.0,), (1 / 255,), Image.Resampling.BICUBIC),  # aligned faces, 0 to 255
}

# Pictures (B, 3, H, W) in [-1, 1] to embeddings (B, D), of any length; NaN for a picture in which it finds nothing.
Embedder = Callable[[Pictures], Tensor]


def cosine(embed: Embedder, target: Picture) -> Similarity:
    """Cosine similarity of embeddings to the target's, in [-1, 1]; `UNDETECTED` where the network finds nothing.

    Raises:
        RecipeError: it takes no such pictures, makes no embeddings of them, or finds nothing in the target.
    """
    try:
        wanted = embed(target[None])
    except Exception as error:  # TorchScript's and onnxruntime's have no root in common
        hint = "similarity.size is the side of the squares that it takes"
        why = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise RecipeError(f"the network of [similarity] takes no such pictures: {why[0]}", hint=hint) from error
    if wanted.ndim != 2 or len(wanted) != 1:
        shape = tuple(wanted.shape)
        raise RecipeError(
            f"the network of [similarity] makes {shape} of one picture",
            wanted="one row, its embedding",
            hint="of feature maps, pooled ones",
        )
    if wanted.isnan().any():
        raise RecipeError(
            "the network of [similarity] finds nothing in a forget picture",
            wanted="a picture that it can recognise",
            hint="crop the picture as the network needs it, or take another similarity.kind",
        )

    def similarity(pictures: Pictures) -> PerExample:
        return F.cosine_similarity(embed(pictures), wanted).float().nan_to_num(nan=UNDETECTED)

    return similarity


def embedder(wanted: Wanted, path: Path) -> Embedder:
    """The network that a recipe's [similarity] names.

    Raises:
        RecipeError: it cannot be loaded.
    """
    try:
        if wanted.kind == "features":
            return vision_model(path)
        if wanted.kind in FED:
            size, mean, std, scaled = FED[wanted.kind]
            return fed(network(path), wanted.size or size, wanted.mean or mean, wanted.std or std, scaled)
        return _entry_point(wanted.kind)(path)
    except (ImportError, OSError, ValueError, RuntimeError, LookupError) as error:
        raise RecipeError(
            f"similarity.kind = {wanted.kind!r} cannot be loaded: {str(error).splitlines()[0]}",
            hint="pixel, sscd, face, features or an installed entry point; similarity.path is a file or folder on this "
            "machine, relative to the recipe: nothing is downloaded",
        ) from error


def fed(
    given: Embedder,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    scaled: Image.Resampling = Image.Resampling.BILINEAR,
) -> Embedder:
    """Feed a network what it was trained on: squares of `size` pixels in [0, 1], less the mean, over the deviation.

    Pillow scales them, in bytes, as where such networks were trained: SSCD sees the last bit of a smooth picture.

    Args:
        given: (B, 3, size, size) -> (B, D).
        size: of the square that pictures are scaled to.
        mean: one number, or one for every channel.
        std: likewise; 1/255 gives a network its pixels in 0 to 255.
        scaled: how.
    """
    take, over = (torch.tensor(list(numbers)).reshape(1, -1, 1, 1) for numbers in (mean, std))

    @torch.no_grad()
    def embed(pictures: Pictures) -> Tensor:
        squares = [from_image(image.resize((size, size), scaled)) for image in to_images(pictures)]
        return given(((torch.stack(squares) + 1) / 2 - take) / over)

    return embed


def network(path: Path) -> Embedder:
    """A TorchScript file; or an ONNX file with one input and, first, the embedding, which needs onnxruntime."""
    if path.suffix != ".onnx":
        return torch.jit.load(str(path), map_location="cpu").eval()
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no root of their own
        raise ValueError(str(error)) from error
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def vision_model(path: Path) -> Embedder:
    """A vision model that `save_pretrained` wrote, with its processor: CLIP, DINO, SigLIP."""
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(path, local_files_only=True)
    model: Any = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True).eval()
    model = getattr(model, "vision_model", model)  # of a text-and-vision model

    @torch.no_grad()
    def embed(pictures: Pictures) -> Tensor:
        out = model(**processor(images=to_images(pictures), return_tensors="pt"))
        pooled = getattr(out, "image_embeds", None)
        if pooled is None:
            pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state[:, 0] if pooled is None else pooled

    return embed


def _entry_point(name: str) -> Callable[[Path], Embedder]:
    found = entry_points(group=GROUP, name=name)
    if not found:
        installed = ", ".join(sorted(entry.name for entry in entry_points(group=GROUP))) or "none"
        raise LookupError(f"no installed package offers {name!r} in {GROUP}; there are: {installed}")
    return next(iter(found)).load()
