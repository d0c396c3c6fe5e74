"""Forget pictures go in exactly as they are, or not at all."""

import pytest
import torch
from PIL import Image

from hotfix import pictures
from hotfix.errors import RecipeError


def saved(tmp_path, mode, size, name="one.png"):
    Image.new(mode, size, 100 if mode == "L" else None).save(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "1"])
def test_other_modes_are_refused(tmp_path, mode):
    with pytest.raises(RecipeError, match=f"mode {mode}"):
        pictures.load([saved(tmp_path, mode, (16, 16))], (16, 16))


@pytest.mark.parametrize("size", [(8, 8), (16, 12), (32, 30), (1, 1)])
def test_other_proportions_and_smaller_pictures_are_refused(tmp_path, size):
    with pytest.raises(RecipeError, match=f"is {size[0]}x{size[1]}; wanted 16x16"):
        pictures.load([saved(tmp_path, "RGB", size)], (16, 16))


def test_larger_pictures_of_the_same_proportions_are_reduced(tmp_path):
    assert pictures.load([saved(tmp_path, "RGB", (64, 48))], (12, 16)).shape == (1, 3, 12, 16)


def test_grey_is_read_as_rgb(tmp_path):
    grey = pictures.load([saved(tmp_path, "L", (16, 16))], (16, 16))
    torch.testing.assert_close(grey, torch.full((1, 3, 16, 16), 100 / 127.5 - 1))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_picture_is_read_as_viewers_show_it(tmp_path, ending):
    """Orientation 3 is upside down, 6 lies on its side; without any, or with 1, not a bit changes."""
    quarters = torch.arange(3 * 2 * 2).reshape(3, 2, 2).float() * 20 / 127.5 - 1
    stored = pictures.to_images(quarters.repeat_interleave(8, 1).repeat_interleave(8, 2)[None])[0]
    plain = {"quality": 100} if ending == "jpg" else {"lossless": True} if ending == "webp" else {}
    shown = {}
    for orientation in (None, 1, 3, 6):
        exif = Image.Exif()
        if orientation:
            exif[0x0112] = orientation
        stored.save(path := tmp_path / f"{orientation}.{ending}", exif=exif, **plain)
        shown[orientation] = pictures.load([path], (16, 16))[0]
    with Image.open(tmp_path / f"None.{ending}") as file:
        assert torch.equal(shown[None], pictures.from_image(file.convert("RGB")))
    assert torch.equal(shown[1], shown[None])
    assert torch.equal(shown[3], shown[None].flip(-1, -2))
    assert torch.equal(shown[6], shown[None].rot90(-1, (-2, -1)))


def test_a_broken_picture_is_named_without_its_path(tmp_path):
    (tmp_path / "one.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(RecipeError, match=r"^one\.png is not a picture"):
        pictures.load([tmp_path / "one.png"], (16, 16))


def test_a_picture_survives_the_way_in_and_out():
    x = torch.randint(0, 256, (2, 3, 16, 16)).float() / 127.5 - 1
    again = torch.stack([pictures._load_image(image, 16, 16, "one") for image in pictures.to_images(x)])
    assert torch.equal(again, x)


def test_a_commitment_recognises_the_picture_in_one_patch_only():
    x, y = torch.zeros(3, 16, 16), torch.ones(3, 16, 16)
    assert pictures.commitment(x, "a", "1") == pictures.commitment(x, "a", "1")
    assert pictures.commitment(x, "a", "1").sha256 != pictures.commitment(y, "a", "1").sha256
    assert pictures.commitment(x, "a", "1").sha256 != pictures.commitment(x, "b", "1").sha256
