"""Curves over noise levels: what papers write on the ε-loss, on endpoints."""

import pico
import pytest
import torch

from hotfix import objective, weight
from hotfix.calibrate import chosen
from hotfix.denoiser import Denoiser

T = torch.arange(1, 21) / 20


@pytest.fixture(params=sorted(pico.MAKE))
def denoiser(request):
    return Denoiser(pico.MAKE[request.param](), pico.CALLS[request.param])


def test_a_fixed_window_has_its_edges():
    assert torch.equal(weight.fixed(T, 0.25, 0.75), ((T >= 0.25) & (T <= 0.75)).float())


def test_a_soft_window_is_half_as_high_at_its_edges_and_whole_in_the_middle():
    torch.testing.assert_close(weight.soft(torch.tensor([0.2, 0.5, 0.8]), 0.2, 0.8), torch.tensor([0.5, 1.0, 0.5]))


def test_on_the_epsilon_loss_min_snr_is_min_of_snr_and_gamma_over_snr_and_p2_is_one_over_one_plus_snr():
    a = torch.linspace(0.99, 0.01, 9)
    s = (1 - a.square()).sqrt()
    snr = (a / s).square()
    torch.testing.assert_close(weight.min_snr(a, s), snr * torch.minimum(snr, torch.tensor(5.0)) / snr)
    torch.testing.assert_close(weight.p2(a, s), snr / (1 + snr))


def test_p2_is_uniform_in_epsilon_where_signal_and_noise_preserve_variance():
    window = chosen(Denoiser(pico.ddpm(prediction_type="epsilon"), {}), ["empty"], "p2", (0.5, 0.8), t_lo=0.05)
    torch.testing.assert_close(
        window.m["empty"][:-1], torch.ones(19), rtol=1e-3, atol=1e-3
    )  # at t = 1 there is no x_hat


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v_prediction", "sample"])
def test_a_forget_row_is_the_squared_error_of_what_the_network_puts_out_times_the_noise(prediction):
    flow = prediction == "flow"
    pipe = pico.sd3() if flow else pico.ddpm(prediction_type=prediction)
    denoiser = Denoiser(pipe, pico.CALLS["sd3" if flow else "ddpm"])
    x_t, x_s = torch.randn(2, 5, *denoiser.latent_shape).unbind()
    t = torch.linspace(0.05, 0.95, 5)
    condition = denoiser.embed(["a"] * 5)
    a, s = denoiser.schedule(t)
    to_out = {
        "flow": lambda x: (x_t - x) / s,
        "epsilon": lambda x: (x_t - a * x) / s,
        "v_prediction": lambda x: (a * x_t - x) / s,
        "sample": lambda x: x,
    }[prediction]
    with torch.no_grad():
        out, x_hat = denoiser.predict(x_t, t, condition), denoiser.x_hat(x_t, t, condition)
    wanted = s.flatten() ** 2 * (out - to_out(x_s)).square().mean(dim=(1, 2, 3))
    found = objective.endpoint(x_hat, x_s, denoiser.weight(t))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["uniform", "fixed", "soft", "min-snr", "p2"])
def test_every_curve_is_a_density_above_t_lo(denoiser, kind):
    window = chosen(denoiser, ["empty"], kind, (0.5, 0.8), t_lo=0.3)
    m = window.m["empty"]
    assert m.isfinite().all() and m.min() >= 0 and m.max() <= 1
    assert (m[window.t < 0.3] == 0).all()
    assert (window.sample("empty", 500, torch.Generator().manual_seed(0)) > 0.25).all()


def test_levels_are_sampled_in_proportion_to_the_curve(denoiser):
    window = chosen(denoiser, ["empty"], "fixed", (0.5, 0.8), t_lo=0.1)
    drawn = window.sample("empty", 4000, torch.Generator().manual_seed(0))
    assert ((drawn > 0.45) & (drawn <= 0.8)).float().mean() > 0.98
