"""The robust arm trains where suppression is weakest: at the worst noise, and one attack step away."""

from collections.abc import Callable
from dataclasses import dataclass

import pico
import pytest
import torch
from conftest import make_recipe

from hotfix import lora
from hotfix.building import build
from hotfix.calibrate import chosen
from hotfix.case import prepare
from hotfix.denoiser import Denoiser
from hotfix.losses import denoising, evenly, forget_loss
from hotfix.robust import hardest, relearned
from hotfix.rows import Bank, ForgetRows, forget_rows


@dataclass
class Step:
    """What one step of the loop has in its hands."""

    denoiser: Denoiser
    adapter: lora.Adapter
    rows: ForgetRows
    loss: Callable[[ForgetRows], torch.Tensor]

    def again(self):
        return torch.Generator().manual_seed(5)


@pytest.fixture
def step(tmp_path, family, pipe):
    recipe = make_recipe(tmp_path, family)
    denoiser = Denoiser(pipe, recipe.base.call)
    case = prepare(recipe, denoiser)
    bank = Bank.of(denoiser, case)
    window = chosen(denoiser, case.forget_kinds(), "uniform", (0.25, 0.75), case.targets[0].t_lo)
    denoiser.model.requires_grad_(False)
    with lora.attached(denoiser.model, denoiser.targets, 2, 0) as adapter:
        phi = adapter.flat()
        adapter.set_flat(phi + 0.02 * torch.randn(len(phi), generator=torch.Generator().manual_seed(1)))
        rows = forget_rows(denoiser, case, (window,), bank.forget, 6, torch.Generator().manual_seed(0))
        yield Step(denoiser, adapter, rows, lambda rows: forget_loss(denoiser, bank, adapter, rows, recipe.train))


@pytest.mark.parametrize("noises", [2, 7])
def test_every_row_keeps_the_noise_with_the_highest_loss(step, noises):
    worst = hardest(step.denoiser, step.loss, step.rows, noises, 0.0, step.again())
    generator = step.again()
    draws = [torch.randn(step.rows.eps.shape, generator=generator) for _ in range(noises - 1)]
    with torch.no_grad():
        losses = torch.stack([step.loss(step.rows.noised_with(step.denoiser, e)) for e in (step.rows.eps, *draws)])
        torch.testing.assert_close(step.loss(worst), losses.max(dim=0).values)
    assert (losses.max(dim=0).values > losses.mean(dim=0)).all()
    again = hardest(step.denoiser, step.loss, step.rows, noises, 0.0, step.again())
    assert torch.equal(again.x_t, worst.x_t)


def test_a_signed_step_raises_the_loss_and_leaves_the_noise_as_long_as_it_was(step):
    moved = hardest(step.denoiser, step.loss, step.rows, 1, 0.05, step.again())
    with torch.no_grad():
        assert step.loss(moved).mean() > step.loss(step.rows).mean()
    torch.testing.assert_close(moved.eps.flatten(1).norm(dim=1), step.rows.eps.flatten(1).norm(dim=1))
    torch.testing.assert_close(moved.x_t, step.denoiser.noised(step.rows.x, step.rows.begun, moved.eps))


def test_off_is_off_and_draws_nothing(step):
    generator = step.again()
    assert hardest(step.denoiser, step.loss, step.rows, 1, 0.0, generator) is step.rows
    assert torch.equal(generator.get_state(), step.again().get_state())


def attack_loss(step):
    return denoising(step.denoiser, step.rows.x_f, *evenly(step.rows.x_f, step.again()), step.rows.condition).mean()


def after_attack(step, phi, size):
    """The forget gradient one attack step on, by hand; phi is only read."""
    step.adapter.set_flat(phi)
    step.adapter.set_flat(phi - size * step.adapter.gradient(attack_loss(step)))
    return step.loss(step.rows).mean()


def test_relearning_is_answered_by_the_forget_gradient_one_attack_step_on(step):
    phi, size = step.adapter.flat(), 3.0
    before = phi.clone()
    wanted = step.adapter.gradient(after_attack(step, phi, size))
    step.adapter.set_flat(phi)

    def gradient():
        return step.adapter.gradient(step.loss(step.rows).mean())

    here, attack = gradient(), step.adapter.gradient(attack_loss(step))
    found = relearned(step.adapter, phi, attack, gradient, size)
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, here)
    assert torch.equal(step.adapter.flat(), before)
    phi.add_(1.0)
    assert torch.equal(step.adapter.flat(), before + 1.0)  # the factors are still views of it


def test_descending_it_lowers_the_forget_loss_after_the_attack(step):
    phi, size = step.adapter.flat(), 1.0
    loss = after_attack(step, phi, size)
    g = step.adapter.gradient(loss)
    with torch.no_grad():
        lowered = phi - 0.02 * g / g.norm()
    assert after_attack(step, lowered, size) < loss


def test_the_attack_brings_the_picture_back(step):
    """Otherwise it would be no attack: a few of its own steps lower the error at x_f."""
    phi, losses = step.adapter.flat(), []
    for _ in range(20):
        step.adapter.set_flat(phi)
        loss = attack_loss(step)
        phi = phi - 0.1 * (g := step.adapter.gradient(loss)) / g.norm()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("choice", [{"adversarial_noises": 8}, {"adversarial_step": 0.1}, {"relearn": 1.0}], ids=str)
def test_each_part_reaches_the_loop(tmp_path, choice, built):
    patch = build(make_recipe(tmp_path, "sd3", **choice), pico.sd3())
    assert patch.manifest.digest != built["sd3"][0].manifest.digest
