"""Likelihood is exact where it is known in closed form; membership is seen in a model that knows its target."""

import math

import pico
import torch
from conftest import make_recipe
from patching import random_patch

from hotfix import membership
from hotfix.case import prepare
from hotfix.denoiser import Denoiser
from hotfix.likelihood import levels, nll
from hotfix.stack import Stack


def gaussian(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """-log2 p per number of some draws from a Gaussian, by the ODE through its exact endpoint and by its formula."""
    draw = torch.Generator().manual_seed(0)
    deviation, mean = 0.3 + torch.rand(1, 3, 8, 8, generator=draw), 0.3 * torch.randn(1, 3, 8, 8, generator=draw)
    x = mean + deviation * torch.randn(4, 3, 8, 8, generator=draw)
    t = torch.linspace(0.02, 0.99, 1000)
    sigmas = (t / (1 - t))[levels(t / (1 - t), steps)]

    def x_hat(z, i):
        return mean + (z - mean) * deviation**2 / (deviation**2 + sigmas[i] ** 2)

    variance = deviation**2 + sigmas[0] ** 2
    exact = ((x - mean) ** 2 / (2 * variance) + (2 * math.pi * variance).log() / 2).flatten(1).mean(dim=1)
    return nll(x_hat, x, sigmas, draw), exact / math.log(2)


def test_the_likelihood_of_a_gaussian_is_the_one_of_its_formula_the_nearer_the_more_steps():
    errors = []
    for steps in (20, 40, 80):
        found, exact = gaussian(steps)
        errors.append(float((found - exact).abs().max()))
    assert errors[0] < 0.05 and errors[2] < 0.005
    assert errors[0] > 3 * errors[1] > 9 * errors[2]  # second order


def test_noise_levels_lie_evenly_in_their_logarithm():
    t = torch.linspace(0.02, 0.99, 1000)
    sigma = t / (1 - t)
    u = sigma[levels(sigma, 20)].log()
    assert len(u) == 21 and float(u.diff().max()) < 1.2 * float(u.diff().min())


def test_a_score_adds_both_and_leaves_the_model_as_it_was(tmp_path, family, pipe):
    denoiser = Denoiser(pipe, pico.CALLS[family])
    case = prepare(make_recipe(tmp_path, family), denoiser)
    for stack, same in ((Stack(), True), (Stack.of(random_patch(pipe, "random", 1)), False)):
        rows = membership.losses(denoiser, stack, case, 0)
        assert all((row.before == row.after) == same for row in rows)
        bits = membership.likelihoods(denoiser, stack, case, 0)
        assert (bits.target_before == bits.target) == same
    assert all(p.grad is None for p in denoiser.model.parameters())


def test_the_likelihood_is_of_small_models_only(tmp_path, family, pipe, monkeypatch):
    denoiser = Denoiser(pipe, pico.CALLS[family])
    case = prepare(make_recipe(tmp_path, family), denoiser)
    monkeypatch.setattr(membership, "SMALL", case.x_r[0].numel() - 1)
    assert membership.likelihoods(denoiser, Stack(), case, 0) is None
