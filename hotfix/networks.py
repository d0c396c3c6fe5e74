"""Networks that look at what must stay: features of pictures, LPIPS, CLIP. Files on this machine, nothing else."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.image.kid import maximum_mean_discrepancy, poly_kernel

from hotfix.embedding import IMAGENET, Embedder, fed, network, vision_model
from hotfix.errors import HotfixError
from hotfix.intervals import Mean
from hotfix.pictures import to_images
from hotfix.shapes import PerExample, Pictures

SIDE, BATCH = 224, 64
Distance = Callable[[Pictures, Pictures], PerExample]
Alignment = Callable[[Pictures, Sequence[str]], PerExample]


@dataclass(frozen=True)
class Networks:
    """What else looks at what must stay; each may be left out. Any function of its kind will do."""

    features: Embedder | None = None
    lpips: Distance | None = None
    clip: Alignment | None = None
    named: Mapping[str, str] = field(default_factory=dict)  # for the report: which they are

    @classmethod
    def load(cls, *, features: Path | None = None, lpips: Path | None = None, clip: Path | None = None) -> Self:
        """Networks from files.

        Args:
            features: a folder with a vision model such as DINO, or a TorchScript or ONNX file that is fed squares of
                224 pixels, normalised as for ImageNet.
            lpips: LPIPS as a TorchScript file: two batches of pictures in [-1, 1] to a distance for each pair.
            clip: a folder with a CLIP model and its processor.

        Raises:
            HotfixError: one cannot be loaded.
        """
        given = {"features": (features, _features), "lpips": (lpips, _lpips), "clip": (clip, _clip)}
        found: dict[str, Any] = {}
        named = {}
        for name, (path, load) in given.items():
            if path is None:
                continue
            try:
                found[name], named[name] = load(path), _name(path)
            except (ImportError, OSError, ValueError, RuntimeError, AttributeError) as error:
                raise HotfixError(
                    f"--{name} {path.name} cannot be loaded: {(str(error).splitlines() or ['no such network'])[0]}",
                    hint="docs/report.md says what kind of file or folder it is",
                ) from error
        return cls(**found, named=named)


@torch.no_grad()
def kid(one: Tensor, other: Tensor) -> Mean:
    """Kernel inception distance of two sets of features, without bias, and its interval by the jackknife.

    Args:
        one: (B, D), at least two rows.
        other: as many, drawn independently of the first.

    Source: Bińkowski et al. 2018, arXiv:1801.01401; the kernel and the estimate are torchmetrics'.
    """
    x, y = one.double(), other.double()
    kernels = poly_kernel(x, x), poly_kernel(x, y), poly_kernel(y, y)
    n, value = len(x), float(maximum_mean_discrepancy(*kernels))
    if n < 3:
        return Mean(value=value)
    without = []
    for i in range(n):
        rest = torch.arange(n) != i
        without.append(maximum_mean_discrepancy(*(k[rest][:, rest] for k in kernels)))
    error = float(((n - 1) ** 2 / n * torch.stack(without).var()) ** 0.5)
    return Mean(value=value, interval=(value - 1.96 * error, value + 1.96 * error))


def away(one: Tensor, other: Tensor) -> PerExample:
    """1 - cosine, pair by pair."""
    return 1 - F.cosine_similarity(one, other)


def _features(path: Path) -> Embedder:
    look = vision_model(path) if path.is_dir() else fed(network(path), SIDE, *IMAGENET)
    return lambda pictures: torch.cat([look(some).flatten(1) for some in pictures.split(BATCH)])


def _lpips(path: Path) -> Distance:
    distance: Any = network(path)

    @torch.no_grad()
    def between(one: Pictures, other: Pictures) -> PerExample:
        pairs = zip(one.split(BATCH), other.split(BATCH), strict=True)
        return torch.cat([distance(a, b).flatten() for a, b in pairs])

    return between


def _clip(path: Path) -> Alignment:
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(path, local_files_only=True, use_safetensors=True).eval()
    processor = CLIPProcessor.from_pretrained(path, local_files_only=True)

    @torch.no_grad()
    def alignment(pictures: Pictures, captions: Sequence[str]) -> PerExample:
        found = []
        for first in range(0, len(captions), BATCH):
            rows = slice(first, first + BATCH)
            batch = processor(
                text=list(captions[rows]),
                images=to_images(pictures[rows]),
                return_tensors="pt",
                padding=True,
                truncation=True,
            )
            out = model(**batch)
            found.append(F.cosine_similarity(out.image_embeds, out.text_embeds))
        return torch.cat(found)

    return alignment


def _name(path: Path) -> str:
    """The file's or folder's name and the beginning of the sha256 of what is in it."""
    h = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            h.update(file.read_bytes())
    return f"{path.absolute().name} sha256:{h.hexdigest()[:12]}"
