"""What a forget row is: a noised target, or where the patched sampler comes to from there."""

import pico
import pytest
import torch

from hotfix.denoiser import Denoiser
from hotfix.losses import walked
from hotfix.rows import ForgetRows


@pytest.fixture
def rows(family):
    """Three that walk and one that does not, and the denoiser they are for."""
    denoiser, n = Denoiser(pico.MAKE[family](), pico.CALLS[family]), 4
    x_f, x_s, eps = (torch.rand(3, n, *denoiser.latent_shape) * 2 - 1).unbind()
    begun, t = torch.full((n,), 0.8), torch.tensor([0.6, 0.3, 0.05, 0.8])
    x_t, none = denoiser.noised(x_f, begun, eps), torch.zeros(n, dtype=torch.bool)
    return denoiser, ForgetRows(x_t, begun, t, {}, x_f, eps, x_f, x_s, none, [None] * n)


def test_a_walking_row_is_where_a_sampler_comes_to_that_heads_for_the_surrogate(rows, monkeypatch):
    r"""Then it holds a_t ((1 - λ) x_f + λ x_s) + s_t eps, λ = 1 - s_t a_0 / (s_0 a_t), however many its steps."""
    denoiser, rows = rows
    monkeypatch.setattr(Denoiser, "x_hat", lambda self, x, t, condition: rows.x_s[: len(x)])
    (a_0, s_0), (a_t, s_t) = denoiser.schedule(rows.begun), denoiser.schedule(rows.t)
    way = 1 - s_t * a_0 / (s_0 * a_t)
    there = denoiser.noised(torch.lerp(rows.x_f, rows.x_s, way), rows.t, rows.eps)
    torch.testing.assert_close(walked(denoiser, rows), there, rtol=1e-3, atol=1e-3)
    assert way.flatten().tolist() == [*sorted(way.flatten().tolist()[:3]), pytest.approx(0, abs=1e-6)]


def test_a_row_that_does_not_walk_keeps_its_state_and_its_gradient(rows):
    denoiser, rows = rows
    eps = rows.eps.clone().requires_grad_()
    alone = rows.noised_with(denoiser, eps)[3:]
    state = walked(denoiser, alone)
    assert torch.equal(state, rows.x_t[3:])
    (gradient,) = torch.autograd.grad(state.sum(), eps)
    assert gradient[3].abs().min() > 0
