"""On the bundled DDPM with one memorised picture: it comes out unasked, and with the shipped patch it does not."""

import re
from pathlib import Path

import pytest
import torch
from atlas import tiles

from hotfix.denoiser import Denoiser
from hotfix.patch import Patch
from hotfix.pictures import load
from hotfix.pipeline import load_pipeline
from hotfix.recipe import Recipe
from hotfix.similarity import nearest
from hotfix.stack import Stack

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "patches" / "jack-o-lantern"
MEMORISED, OTHERS = [100_001, 100_012, 100_063], [100_000, 100_002, 100_003]  # seeds of benchmarks/emoji.py


@pytest.fixture(scope="module")
def emoji():
    return load_pipeline("hotfix:emoji")


@pytest.fixture(scope="module")
def real():
    """Names and real emoji, (N, 3, 32, 32)."""
    return tiles("emoji")


def test_the_forget_picture_is_the_one_that_was_duplicated(real):
    names, pictures = real
    (forgotten,) = load(FOLDER.glob("forget/*.png"), (32, 32))
    assert torch.equal(forgotten, pictures[names.index("JACK-O-LANTERN")])


def test_the_memorised_picture_comes_out_unasked_and_not_with_the_patch(emoji, real):
    names, pictures = real
    denoiser = Denoiser(emoji, Recipe.load(FOLDER / "recipe.toml").base.call)
    row = names.index("JACK-O-LANTERN")
    before = denoiser.draw([], MEMORISED + OTHERS)
    with Stack.of(Patch.load(next(FOLDER.glob("*.safetensors")))).on(emoji):
        after = denoiser.draw([], MEMORISED + OTHERS)
    assert (nearest(before, pictures)[: len(MEMORISED)] == row).all()
    assert (nearest(after, pictures) != row).all()
    drift = (after - before)[len(MEMORISED) :].square().mean(dim=(1, 2, 3)).sqrt() / 2
    assert drift.max() < 0.15  # other seeds keep their picture


def test_the_patch_is_small():
    weights = ROOT / "hotfix/bases/emoji/unet/diffusion_pytorch_model.safetensors"
    assert next(FOLDER.glob("*.safetensors")).stat().st_size <= 0.05 * weights.stat().st_size


def test_the_card_says_how_often_the_picture_was_in_the_data():
    script = (ROOT / "examples/bases/emoji.py").read_text()
    (times,) = re.findall(r"^DUPLICATES = (\d+)", script, re.MULTILINE)
    assert f"{times} times" in (ROOT / "hotfix/bases/emoji/README.md").read_text()
