"""Nothing of a forget picture is in what a build and a score leave behind: searched for byte by byte, in many forms."""

import base64
import io

import numpy as np
import pico
import pytest
import torch
from conftest import make_recipe
from PIL import Image

from hotfix import card, provenance
from hotfix.building import build
from hotfix.denoiser import Denoiser
from hotfix.describe import describe, facts, summary
from hotfix.pictures import from_image
from hotfix.scoring import score
from hotfix.stack import Stack

WINDOW = 12  # bytes: by chance as good as never in a megabyte


def noisy(seed: int) -> Image.Image:
    """A picture of which any few bytes are found nowhere else."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (pico.SIDE, pico.SIDE, 3), dtype=np.uint8))


def coded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    head = buffer.getvalue().find({"PNG": b"IDAT", "JPEG": b"\xff\xda", "WEBP": b"VP8"}[kind])
    return buffer.getvalue()[head + 12 :]  # tables before it are the same in every file


def forms(image: Image.Image, latents: torch.Tensor) -> dict[str, bytes]:
    """A picture, its thumbnails and its latents as people store them."""
    found = {}
    for size in (pico.SIDE, pico.SIDE // 2):
        small = image.resize((size, size), Image.Resampling.BOX)
        planes = np.asarray(small).transpose(2, 0, 1)
        found |= {f"{kind} of {size}": coded(small, kind) for kind in ("PNG", "JPEG", "WEBP")}
        found |= {f"pixels of {size}": np.asarray(small).tobytes(), f"planes of {size}": planes.tobytes()}
        for name, values in (("[0, 1]", planes / 255), ("[-1, 1]", planes / 127.5 - 1)):
            found |= {f"{name} {dtype}": values.astype(dtype).tobytes() for dtype in ("float16", "float32", "float64")}
    found |= {f"latents {dtype}": latents.to(dtype).numpy().tobytes() for dtype in (torch.float32, torch.float16)}
    return found


def leaks(blob: bytes, image: Image.Image, latents: torch.Tensor) -> set[str]:
    """In which forms some of it is there, plain or in base64, whatever stands before it."""
    found = set()
    for name, form in forms(image, latents).items():
        parts = [form[at : at + WINDOW] for at in range(0, len(form) - WINDOW + 1, WINDOW)]
        coded64 = [base64.b64encode(form[shift:])[4:-4] for shift in range(3)]
        parts += [text[at : at + 16] for text in coded64 for at in range(0, len(text) - 16, 16)]
        if any(part in blob for part in parts if len(set(part)) > 3):
            found.add(name)
    return found


@pytest.fixture(scope="module", params=["ddpm", "sd3"])
def left(request, tmp_path_factory):
    """A forget picture, its latents, and everything that a build and a score of it leave or say."""
    folder, out, said = tmp_path_factory.mktemp("recipe"), tmp_path_factory.mktemp("out"), []
    recipe, image, pipe = make_recipe(folder, request.param), noisy(1), pico.MAKE[request.param]()
    image.save(folder / "forget/one.png")
    (folder / "forget/one.png").rename(folder / "forget/john-doe.png")

    def say(*words):
        said.append(repr(words))

    patch = build(recipe, pipe, checkpoint=out, stage=say, progress=say)
    path = patch.save(out)
    report = score(pipe, recipe, stack=Stack.of(patch), n=2, attacks=["samplings"], stage=say)
    report.save(out / "report.json")
    report.to_html(out / "report.html")
    made = provenance.statement(
        patch, path, (), started="2026-01-01T00:00:00Z", finished="2026-01-01T00:01:00Z", hardware="CPU"
    )
    provenance.save(made, path)
    (out / "card.md").write_text(card.page(patch, "acme/quarters", report, "mit"))
    (out / "said.txt").write_text("\n".join([*said, summary(report), describe(patch), repr(facts(patch))]))
    latents = Denoiser(pipe, recipe.base.call).encode(from_image(image)[None])
    return image, latents, out


def test_no_form_of_a_forget_picture_is_left_anywhere(left):
    image, latents, out = left
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json", ".html", ".md", ".txt"}
    assert not [path for path in files if path.suffix == ".state"]
    for path in files:
        assert not leaks(path.read_bytes(), image, latents), path
        assert b"john" not in path.read_bytes(), path


def test_every_form_would_be_found(left):
    image, latents, out = left
    (patch,) = out.glob("*.safetensors")
    for name, form in forms(image, latents).items():
        start = len(form) // 3
        for hidden in (form[start:], base64.b64encode(form[start:]), base64.b64encode(b"x" + form)):
            assert name in leaks(patch.read_bytes() + hidden + b"end", image, latents)
