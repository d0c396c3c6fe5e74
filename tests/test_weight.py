"""Curves over noise levels: what papers write on the ε-loss, on ours."""

import pico
import pytest
import torch

from hotfix import weight
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


def test_min_snr_times_noise_is_min_of_snr_and_gamma_over_snr():
    a, s = torch.linspace(0.99, 0.01, 9), (1 - torch.linspace(0.99, 0.01, 9) ** 2).sqrt()
    snr = (a / s).square()
    torch.testing.assert_close(weight.min_snr(a, s) * s.square(), torch.minimum(snr, torch.tensor(5.0)) / snr)


def test_p2_is_uniform_where_signal_and_noise_preserve_variance():
    a = torch.linspace(0.99, 0.0, 9)
    torch.testing.assert_close(weight.p2(a, (1 - a.square()).sqrt()), torch.ones(9))


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
    assert window.at("empty", torch.tensor([0.5, 0.51, 0.9])).tolist() == [1.0, 1.0, 0.0]
