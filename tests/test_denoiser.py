"""One x_hat for all predictions, checked against diffusers' own schedulers and pipelines."""

from itertools import pairwise

import pico
import pytest
import torch
from diffusers import DDIMScheduler

from hotfix.denoiser import Denoiser
from hotfix.errors import UnknownFamily


@pytest.fixture
def denoiser(pipe, family):
    return Denoiser(pipe, pico.CALLS[family])


def test_signal_falls_and_noise_rises(denoiser):
    a, s = denoiser.schedule(torch.linspace(0.01, 1, 50))
    assert (a.diff(dim=0) <= 0).all() and (s.diff(dim=0) >= 0).all()


def test_time_one_is_pure_noise(denoiser):
    a, s = denoiser.schedule(torch.ones(1))
    assert float(a) < 0.03 and float(s) > 0.99


def test_denoising_a_flow_is_what_the_pipeline_does():
    """Euler steps on the velocity are DDIM steps on the endpoint: same noise and caption, same picture."""
    pipe = pico.sd3()
    denoiser = Denoiser(pipe, pico.CALLS["sd3"])
    drawn = denoiser.draw(["a", "b"], [0, 1])
    noise = torch.cat([torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(i)) for i in (0, 1)])
    pipe.scheduler.set_timesteps(3)
    ours = noise
    sigmas = pipe.scheduler.sigmas.tolist()
    for now, then in pairwise(sigmas):
        t = torch.full((2,), now)
        with torch.no_grad():
            x0 = denoiser.x_hat(ours, t, denoiser.embed(["a", "b"]))
            bare = denoiser.x_hat(ours, t, denoiser.embed(["", ""]))
        x0 = bare + 2.0 * (x0 - bare)
        ours = (1 - then) * x0 + then * (ours - (1 - now) * x0) / now
    torch.testing.assert_close(denoiser.decode(ours), drawn, rtol=0, atol=2e-2)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_endpoint_is_the_one_that_diffusers_scheduler_finds(prediction):
    pipe = pico.ddpm(prediction_type=prediction)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    denoiser = Denoiser(pipe, {})
    x_t, index = torch.randn(2, 3, 16, 16), 600
    with torch.no_grad():
        out = pipe.unet(x_t, index).sample
        ours = denoiser.x_hat(x_t, torch.full((2,), index / 999), {})
    scheduler.set_timesteps(1000)
    theirs = scheduler.step(out, index, x_t).pred_original_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_picture_depends_on_its_seed_not_on_its_neighbours(denoiser):
    together = denoiser.draw(["a", "b", "a"], [0, 1, 2])
    torch.testing.assert_close(denoiser.draw(["a"], [2]), together[2:], rtol=0, atol=1e-4)


def test_encode_then_decode_is_the_picture_for_a_pixel_model():
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    denoiser = Denoiser(pico.ddpm(), {})
    assert torch.equal(denoiser.decode(denoiser.encode(x)), x)


def test_drawing_leaves_the_pipelines_settings_alone(denoiser):
    before = dict(denoiser.pipe._progress_bar_config)
    denoiser.draw(["a"], [0])
    assert denoiser.pipe._progress_bar_config == before


def test_an_unknown_pipeline_is_refused_with_the_known_ones(pipe):
    class Other(type(pipe)):
        pass

    pipe.__class__ = Other
    with pytest.raises(UnknownFamily, match="DDPMPipeline"):
        Denoiser(pipe, {})
