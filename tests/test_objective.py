"""The loss is one number per example, zero at the target, and the same in every parameterisation."""

import pico
import pytest
import torch

from hotfix import objective
from hotfix.denoiser import Denoiser


def test_zero_exactly_at_the_target():
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(objective.endpoint(x, x, torch.rand(4)), torch.zeros(4))


def test_one_number_per_example():
    x, target, a = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.rand(4)
    alone = torch.cat([objective.endpoint(x[i : i + 1], target[i : i + 1], a[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(objective.endpoint(x, target, a), alone)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_equals_the_epsilon_loss_with_its_bounded_weight(prediction):
    """s² ‖ε̂ - ε_s‖² = a² ‖x̂ - x_s‖² for x_t noised from x_f, whatever the network predicts (docs/method.md)."""
    denoiser = Denoiser(pico.ddpm(prediction_type=prediction), {})
    x_f, x_s, eps = torch.randn(3, 5, 3, 16, 16).unbind()
    t = torch.linspace(0.05, 0.95, 5)
    a, s = denoiser.schedule(t)
    x_t = denoiser.noised(x_f, t, eps)
    with torch.no_grad():
        x_hat = denoiser.x_hat(x_t, t, {})
    eps_hat, eps_s = (x_t - a * x_hat) / s, (x_t - a * x_s) / s
    in_eps = s.flatten() ** 2 * (eps_hat - eps_s).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(objective.endpoint(x_hat, x_s, a.flatten() ** 2), in_eps, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_distillation_does_not_let_go_of_pure_noise(prediction):
    """A prediction that is off by one everywhere costs one at every noise level, t = 1 included."""
    denoiser = Denoiser(pico.ddpm(prediction_type=prediction), {})
    t = torch.tensor([0.01, 0.5, 1.0])
    with torch.no_grad():
        out = denoiser.predict(torch.randn(3, 3, 16, 16), t, {})
    torch.testing.assert_close(objective.distil(out + 1, out), torch.ones(3))
    assert torch.equal(objective.distil(out, out), torch.zeros(3))


def test_the_surrogate_noise_is_eps_plus_the_shifted_edit():
    a, s = torch.tensor(0.8), torch.tensor(0.6)
    x_f, x_s, eps = torch.randn(3, 4, 4).unbind()
    x_t = a * x_f + s * eps
    torch.testing.assert_close((x_t - a * x_s) / s, eps + (a / s) * (x_f - x_s))


@pytest.mark.parametrize("family", sorted(pico.MAKE))
def test_one_step_along_the_landing_ends_where_several_did(family):
    denoiser = Denoiser(pico.MAKE[family](), {})
    x_t, x_then = torch.randn(2, 3, 3, 8, 8).unbind()
    now, then = denoiser.schedule(torch.tensor([1.0, 0.6, 0.1])), denoiser.schedule(torch.tensor([0.75, 0.35, 0.0]))
    along = objective.landing(x_t, x_then, now, then)
    torch.testing.assert_close(objective.ddim(x_t, along, now, then), x_then, rtol=1e-4, atol=1e-4)


def test_an_exact_model_draws_each_picture_as_often_as_the_posterior_says():
    like = torch.tensor([0.9, 0.1, 0.5])
    assert objective.left_out(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.5, 0.5]]), like) == pytest.approx(0.5)
    assert objective.left_out(torch.tensor([[0.02, 0.98, 0.0]]), like) == pytest.approx(0.1)
    assert objective.left_out(torch.tensor([[0.06, 0.94, 0.0]]), like) == pytest.approx(0.9)
    assert objective.left_out(torch.eye(2), torch.tensor([[0.2, 1.0], [1.0, 0.3]])) == pytest.approx(0.3)


def exact(x_t, x, t):
    """The endpoint of an exact model of flow states that learnt the pictures x."""
    return objective.posterior_mean(x_t, x, 1 - t, t)


def test_the_share_of_the_target_in_an_exact_models_endpoint_is_its_posterior():
    x_f, others, eps = torch.randn(1, 3, 8, 8), torch.randn(9, 3, 8, 8), torch.randn(40, 3, 8, 8)
    t = torch.linspace(0.05, 1.0, 40)
    x_t = (1 - t)[:, None, None, None] * x_f + t[:, None, None, None] * eps
    found = objective.share(exact(x_t, torch.cat([x_f, others]), t), x_f.expand_as(x_t), exact(x_t, others, t))
    posterior = objective.responsibility(x_t, x_f.expand_as(x_t), others, 1 - t, t)
    torch.testing.assert_close(found.flatten(), posterior, rtol=1e-3, atol=1e-4)
    assert float(posterior[0]) > 0.99 and float(posterior[-1]) < 0.2


def test_a_share_is_all_of_the_target_and_none_of_what_is_around_it_or_beyond():
    x_f, around = torch.randn(2, 4, 3, 8, 8).unbind()
    assert objective.share(x_f, x_f, around).flatten() == pytest.approx(1)
    assert not objective.share(around, x_f, around).any()
    assert not objective.share(around - (x_f - around), x_f, around).any()
    assert not objective.share(x_f, x_f, x_f).any()  # as well either


def test_delta_is_the_endpoint_of_a_model_that_learnt_the_surrogate_in_the_targets_place():
    x_f, x_s, others, eps = (torch.randn(n, 3, 8, 8) for n in (1, 1, 9, 40))
    t = torch.linspace(0.05, 1.0, 40)
    x_t = (1 - t)[:, None, None, None] * x_f + t[:, None, None, None] * eps
    odds = objective.posterior(x_t, torch.cat([x_f, others]), 1 - t, t)
    base = torch.einsum("bn,nchw->bchw", odds, torch.cat([x_f, others]))
    in_its_place = torch.einsum("bn,nchw->bchw", odds, torch.cat([x_s, others]))
    r = objective.share(base, x_f, exact(x_t, others, t))
    torch.testing.assert_close(objective.delta(base, x_f, x_s, r), in_its_place, rtol=1e-3, atol=2e-3)


def test_responsibility_is_certain_at_low_noise_and_a_fair_share_at_pure_noise():
    x_f, x_r, eps = torch.randn(5, 3, 8, 8), torch.randn(9, 3, 8, 8), torch.randn(5, 3, 8, 8)
    near = objective.responsibility(0.99 * x_f + 0.1 * eps, x_f, x_r, torch.full((5,), 0.99), torch.full((5,), 0.1))
    torch.testing.assert_close(near, torch.ones(5))
    far = objective.responsibility(eps, x_f, x_r, torch.zeros(5), torch.ones(5))
    torch.testing.assert_close(far, torch.full((5,), 0.1))


def test_responsibility_is_the_bayesian_posterior():
    x_f, x_r, eps = torch.randn(2, 1, 2, 2), torch.randn(3, 1, 2, 2), torch.randn(2, 1, 2, 2)
    a, s = torch.tensor([0.6, 0.3]), torch.tensor([0.8, 0.95])
    x_t = a[:, None, None, None] * x_f + s[:, None, None, None] * eps
    for i in range(2):
        normal = torch.distributions.Normal(0.0, s[i])
        evidence = [normal.log_prob(x_t[i] - a[i] * x).sum().exp() for x in (x_f[i], *x_r)]
        share = objective.responsibility(x_t, x_f, x_r, a, s)[i]
        torch.testing.assert_close(share, evidence[0] / sum(evidence))


def test_the_posterior_mean_is_the_nearest_picture_at_low_noise_and_the_mean_at_pure_noise():
    x, eps = torch.randn(6, 3, 8, 8), torch.randn(2, 3, 8, 8)
    near = objective.posterior_mean(0.99 * x[:2] + 0.1 * eps, x, torch.full((2,), 0.99), torch.full((2,), 0.1))
    torch.testing.assert_close(near, x[:2])
    far = objective.posterior_mean(eps, x, torch.zeros(2), torch.ones(2))
    torch.testing.assert_close(far, x.mean(dim=0).expand(2, -1, -1, -1))
