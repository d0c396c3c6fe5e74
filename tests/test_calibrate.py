"""The timestep window: open where the base still draws the target, shut where it draws strangers."""

import pytest
import torch
from atlas import tiles

from hotfix import calibrate
from hotfix.denoiser import Denoiser
from hotfix.pipeline import load_pipeline
from hotfix.similarity import ALIKE, null, pixel, stranger

CALL = {"num_inference_steps": 14, "guidance_scale": 2.0, "max_sequence_length": 10}
CAPTIONS = {"own": "japan", "empty": "", "random": "germany"}


@pytest.fixture(scope="module")
def window():
    """Of the flag of Japan on the bundled base, at t = .25, .5, .75 and 1."""
    denoiser = Denoiser(load_pipeline("hotfix:flags"), CALL)
    entries, pictures = tiles("flags")
    row = [caption for _, caption in entries].index("japan")
    similarity = pixel(pictures[row])
    strangers = null(similarity, torch.cat([pictures[:row], pictures[row + 1 :]]))
    conditions = {kind: denoiser.embed([caption]) for kind, caption in CAPTIONS.items()}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calibrate, "GRID", 4)
        x_f = denoiser.encode(pictures[row][None])
        return calibrate.calibrate(denoiser, x_f, conditions, similarity, strangers, 0.3, seed=0)


def test_under_its_own_caption_the_window_is_open_even_at_pure_noise(window):
    assert (window.m["own"][1:] == 1).all()


def test_without_a_caption_it_is_open_as_long_as_a_drawing_comes_back(window):
    """At t = .75 a single endpoint is already a mean, and like nothing."""
    assert window.m["empty"][2] > 0.5
    assert window.m["empty"][3] < 0.5


def test_under_a_stranger_s_caption_it_shuts_before(window):
    assert (window.m["random"] <= window.m["empty"]).all()
    assert window.m["random"][2:].max() < 0.5


def test_nothing_is_open_below_t_lo(window):
    assert all(m[0] == 0 for m in window.m.values())


@pytest.mark.parametrize("half_turn", [False, True])
def test_no_picture_is_its_own_stranger(half_turn):
    disc = ((torch.arange(16) - 7.5).square() < 20).float()
    picture = (1.2 * disc[:, None] * disc - 0.6).expand(3, -1, -1)
    picture = picture if half_turn else picture.roll(5, -1)
    assert float(pixel(picture)(stranger(picture)[None])) < ALIKE
