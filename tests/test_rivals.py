"""The published objectives that hotfix is compared with: their formulas, and that they train and leave no trace."""

import inspect
import math

import pico
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rivals import (
    duo,
    erasediff,
    esd,
    munba,
    negated_lora,
    negative_gradient,
    plain,
    retrack,
    selective_amnesia,
    siss,
)
from benchmarks.rivals.descent import descend, gradient
from benchmarks.rivals.prediction import eps_hat, target, towards
from benchmarks.rivals.problem import Noisy, denoising_loss, forget_rows, take
from benchmarks.rivals.ways import opened
from hotfix.denoiser import Denoiser

ROWS = 2
# forward and backward rows of two steps of ROWS rows, under a caption; the smallest settings of what comes before them
COSTS = {
    negative_gradient: (8, 8, {}),
    erasediff: (8, 8, {}),
    siss: (4 + 2, 8 + 4, {}),
    negated_lora: (4, 4, {}),
    esd: (12, 4, {}),
    duo: (24 + 2 * duo.EDIT_STEPS, 12, {"pairs": 1}),
    retrack: (4, 4, {"k": 2}),
    selective_amnesia: (8 + 2, 8 + 2, {"samples": 2}),
    munba: (8, 8, {}),
    plain: (12, 8, {}),
}
RIVALS = [pytest.param(rival, id=rival.__name__.rpartition(".")[2]) for rival in COSTS]
MODES = ["lora", "full"]
each_rival, each_mode = pytest.mark.parametrize("rival", RIVALS), pytest.mark.parametrize("mode", MODES)


def open_for(pipe, family, mode, prompted=True, seed=0, **changes):
    denoiser = Denoiser(pipe, pico.CALLS[family])
    x = torch.randn(6, *denoiser.latent_shape, generator=torch.Generator().manual_seed(1))
    facts = {"x_f": x[:1], "x_s": x[1:3], "x_r": x[3:], "retain": ["b", "a b", ""], "forget": ["a"] if prompted else []}
    return opened(denoiser, mode, seed=seed, rank=2, **facts | changes)


def state(pipe):
    model = Denoiser(pipe, {}).model
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        {k: (p.requires_grad, p.grad, p.data_ptr()) for k, p in model.named_parameters()},
        model.training,
    )


def assert_same(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(v, after[0][k]) for k, v in before[0].items())


def flat(problem):
    return torch.cat([p.detach().flatten() for p in problem.parameters])


def picture_and_noise(denoiser, seed=0):
    """x, eps, t and the state between them."""
    x, eps = torch.randn(2, 5, *denoiser.latent_shape, generator=torch.Generator().manual_seed(seed))
    t = torch.linspace(0.05, 0.95, 5)
    return x, eps, t, denoiser.noised(x, t, eps)


# What a network should put out


@pytest.fixture(params=["epsilon", "v_prediction", "sample", "flow"])
def denoiser(request):
    flow = request.param == "flow"
    return Denoiser(pico.sd3() if flow else pico.ddpm(prediction_type=request.param), {})


def test_a_perfect_prediction_implies_the_noise_it_was_made_from(denoiser):
    x, eps, t, x_t = picture_and_noise(denoiser)
    torch.testing.assert_close(eps_hat(denoiser, target(denoiser, x, eps, t), x_t, t), eps, rtol=1e-3, atol=1e-4)


def test_towards_leads_to_any_picture_from_any_state(denoiser):
    x, _, t, x_t = picture_and_noise(denoiser)
    elsewhere = x.flip(0)
    a, s = denoiser.schedule(t)
    implied = eps_hat(denoiser, towards(denoiser, elsewhere, x_t, t), x_t, t)
    torch.testing.assert_close((x_t - s * implied) / a, elsewhere, rtol=1e-3, atol=1e-3)


def test_implied_noise_and_the_denoisers_endpoint_are_one_prediction(denoiser):
    _, _, t, x_t = picture_and_noise(denoiser)
    condition = denoiser.embed(["a"] * 5)
    a, s = denoiser.schedule(t)
    with torch.no_grad():
        implied = eps_hat(denoiser, denoiser.predict(x_t, t, condition), x_t, t)
        torch.testing.assert_close(a * denoiser.x_hat(x_t, t, condition) + s * implied, x_t, rtol=1e-3, atol=1e-4)


# Two ways of training


@each_mode
def test_the_base_under_training_is_the_untouched_model(pipe, family, mode):
    denoiser = Denoiser(pipe, pico.CALLS[family])
    _, _, t, x_t = picture_and_noise(denoiser)
    condition = denoiser.embed(["a"] * 5)
    with torch.no_grad():
        before = denoiser.predict(x_t, t, condition)
    with open_for(pipe, family, mode) as problem:
        negative_gradient.train(problem, steps=1, lr=1e-2, rows=ROWS)
        assert torch.equal(problem.teacher(x_t, t, condition), before)
        with torch.no_grad():
            assert not torch.equal(problem.predict(x_t, t, condition), before)


@each_mode
def test_asking_the_base_does_not_disturb_a_gradient_under_way(pipe, family, mode):
    with open_for(pipe, family, mode) as problem:
        negative_gradient.train(problem, steps=1, lr=1e-2, rows=ROWS)
        rows = forget_rows(problem, ROWS)
        alone = gradient(problem, denoising_loss(problem, rows))
        losses = denoising_loss(problem, rows)
        problem.teacher(rows.x_t, rows.t, rows.condition)
        assert torch.equal(gradient(problem, losses), alone)


@each_mode
def test_no_trace_is_left_when_training_fails(pipe, family, mode):
    before = state(pipe)
    with pytest.raises(ZeroDivisionError), open_for(pipe, family, mode) as problem:
        negative_gradient.train(problem, steps=1, lr=1e-2, rows=ROWS)
        with problem.base():
            raise ZeroDivisionError
    assert_same(before, state(pipe))


@each_mode
def test_scaled_to_nothing_is_the_base(pipe, family, mode):
    with open_for(pipe, family, mode) as problem:
        negative_gradient.train(problem, steps=1, lr=1e-2, rows=ROWS)
        trained = flat(problem)
        problem.scale(1.0)
        assert torch.equal(flat(problem), trained)
        problem.scale(0.0)
        rows = forget_rows(problem, ROWS)
        with torch.no_grad():
            now = problem.predict(rows.x_t, rows.t, rows.condition)
        assert torch.equal(now, problem.teacher(rows.x_t, rows.t, rows.condition))


def test_full_fine_tuning_of_coarse_weights_is_refused():
    pipe = pico.ddpm()
    pipe.unet.to(torch.bfloat16)
    with pytest.raises(ValueError, match="float32"), open_for(pipe, "ddpm", "full"):
        pass


def test_every_retained_picture_needs_its_caption():
    with pytest.raises(ValueError, match="1 captions for 3"), open_for(pico.sd3(), "sd3", "lora", retain=["b"]):
        pass


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_in_eps_space_the_loss_is_that_of_the_implied_noise(prediction):
    pipe = pico.ddpm(prediction_type=prediction)
    with open_for(pipe, "ddpm", "lora", space="eps") as problem, torch.no_grad():
        rows = forget_rows(problem, ROWS)
        out = problem.predict(rows.x_t, rows.t, {})
        implied = eps_hat(problem.denoiser, out, rows.x_t, rows.t)
        direct = (implied - rows.eps).square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(denoising_loss(problem, rows), direct, rtol=1e-3, atol=1e-4)


# Every rival


@each_rival
@each_mode
def test_trains_at_its_stated_cost_and_leaves_no_trace(pipe, family, mode, rival):
    forward, backward, options = COSTS[rival]
    if rival is esd and family == "ddpm":
        forward -= 2 * ROWS  # no caption, one question less to the base
    before = state(pipe)
    with open_for(pipe, family, mode) as problem:
        start = flat(problem)
        rival.train(problem, steps=2, lr=1e-3, rows=ROWS, **options)
        assert torch.isfinite(flat(problem)).all()
        assert not torch.equal(flat(problem), start)
        assert (problem.count.forward, problem.count.backward) == (forward, backward)
        assert problem.count.cost == forward + 2 * backward
    assert_same(before, state(pipe))


@each_rival
def test_a_request_without_a_prompt_is_trained_on_a_model_that_takes_them(rival):
    with open_for(pico.sd3(), "sd3", "lora", prompted=False) as problem:
        start = flat(problem)
        rival.train(problem, steps=1, lr=1e-3, rows=ROWS, **COSTS[rival][2])
        assert torch.isfinite(flat(problem)).all()
        assert not torch.equal(flat(problem), start)


@each_rival
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_trains_in_eps_space_whatever_the_network_predicts(rival, prediction):
    with open_for(pico.ddpm(prediction_type=prediction), "ddpm", "lora", space="eps") as problem:
        start = flat(problem)
        rival.train(problem, steps=1, lr=1e-3, rows=ROWS, **COSTS[rival][2])
        assert torch.isfinite(flat(problem)).all()
        assert not torch.equal(flat(problem), start)


@each_rival
def test_one_seed_one_result(rival):
    ends = []
    for seed in (1, 1, 2):
        with open_for(pico.ddpm(), "ddpm", "full", seed=seed) as problem:
            rival.train(problem, steps=1, lr=1e-3, rows=ROWS, **COSTS[rival][2])
            ends.append(flat(problem))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@each_rival
def test_same_face(rival):
    """What the benchmark reads from every module, and that the sweep contains the default."""
    arguments = inspect.signature(rival.train).parameters
    assert list(arguments)[:3] == ["problem", "steps", "lr"]
    assert list(arguments)[3:5] == [rival.KNOB, "rows"]
    assert arguments["rows"].default == rival.BATCH
    assert arguments[rival.KNOB].default in rival.SWEEP
    assert rival.MODE in MODES
    assert all(hasattr(rival, name) for name in ("STEPS", "LR"))
    assert rival.__all__ == ["BATCH", "KNOB", "LR", "MODE", "STEPS", "SWEEP", "train"]


CLIMB = [(negative_gradient, {}), (siss, {"share": 3.0}), (negated_lora, {}), (esd, {}), (munba, {"forget": "ascent"})]
REDIRECT = [(retrack, {"k": 1}), (selective_amnesia, {"samples": 2}), (munba, {"forget": "surrogate"}), (plain, {})]


def fixed_rows(problem, x):
    """The same noise and levels for every picture and every call."""
    t = torch.linspace(0.2, 0.9, 16)
    x = x[:1].expand(16, -1, -1, -1)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    return Noisy(x, eps, t, problem.denoiser.noised(x, t, eps), take(problem.forget, torch.zeros(16, dtype=torch.long)))


@torch.no_grad()
def fixed_loss(problem, x):
    return float(denoising_loss(problem, fixed_rows(problem, x)).mean())


@pytest.mark.parametrize("rival, options", CLIMB)
def test_climbs_the_forget_pictures_loss(pipe, family, rival, options):
    with open_for(pipe, family, "full", prompted=False) as problem:
        before = fixed_loss(problem, problem.x_f)
        rival.train(problem, steps=8, lr=1e-3, rows=4, **options)
        assert fixed_loss(problem, problem.x_f) > before


@pytest.mark.parametrize("rival, options", REDIRECT)
def test_turns_the_endpoint_from_the_forget_picture_to_the_surrogate(pipe, family, rival, options):
    with open_for(pipe, family, "full") as problem:
        rows = fixed_rows(problem, problem.x_f)
        elsewhere = problem.x_r if rival is retrack else problem.x_s

        @torch.no_grad()
        def lean():
            x_hat = problem.denoiser.x_hat(rows.x_t, rows.t, rows.condition)
            return float((x_hat * (problem.x_f - elsewhere.mean(dim=0))).mean())

        before = lean()
        rival.train(problem, steps=8, lr=1e-3, rows=4, **options)
        assert lean() < before


def test_duo_makes_its_winner_likelier_against_the_forget_picture(pipe, family):
    with open_for(pipe, family, "full") as problem:
        win = problem.x_s[:1]
        before = fixed_loss(problem, win) - fixed_loss(problem, problem.x_f)
        duo.train(problem, steps=8, lr=1e-3, rows=4, winners=win, preserve=0.0)
        assert fixed_loss(problem, win) - fixed_loss(problem, problem.x_f) < before


@each_mode
def test_erasediff_predicts_noise_of_the_wrong_mean_for_the_forget_picture(mode):
    with open_for(pico.ddpm(), "ddpm", mode) as problem:
        rows = fixed_rows(problem, problem.x_f)

        @torch.no_grad()
        def off():
            return abs(0.5 - float(problem.predict(rows.x_t, rows.t, {}).mean()))

        before = off()
        erasediff.train(problem, steps=8, lr=1e-3, rows=4)
        assert off() < before


# Their formulas


@st.composite
def gradient_pairs(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    g, r = torch.randn(2, draw(st.integers(2, 100)), generator=generator, dtype=torch.float64)
    return g * 10 ** draw(st.floats(-4, 4)), r * 10 ** draw(st.floats(-4, 4))


distances, shares = st.floats(0, 1e6), st.floats(0.01, 0.99)


@given(distances, distances, shares)
def test_siss_weights_share_out_one(d_x, d_a, lam):
    w_x, w_a = siss.weights(torch.tensor([d_x]), torch.tensor([d_a]), lam)
    torch.testing.assert_close((1 - lam) * w_x + lam * w_a, torch.ones(1))
    assert 0 <= w_x <= 1 / (1 - lam) * 1.0001
    assert 0 <= w_a <= 1 / lam * 1.0001


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("a, s", [(0.9, 0.4), (0.3, 0.95)])
def test_siss_weights_turn_the_mixture_into_either_expectation(lam, a, s):
    """E_mixture w_x f = E_q(.|x_r) f and E_mixture w_a f = E_q(.|x_f) f, by integration in one dimension."""
    x_r, x_f = 0.7, -1.2
    m = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    q_r, q_f = (torch.distributions.Normal(a * x, s).log_prob(m).exp() for x in (x_r, x_f))
    w_x, w_a = siss.weights(*((m - a * x).square() / (2 * s**2) for x in (x_r, x_f)), lam)
    mixture = (1 - lam) * q_r + lam * q_f
    for f in (m, m.square(), m.sin()):
        torch.testing.assert_close(torch.trapezoid(mixture * w_x * f, m), torch.trapezoid(q_r * f, m))
        torch.testing.assert_close(torch.trapezoid(mixture * w_a * f, m), torch.trapezoid(q_f * f, m))


def test_siss_keeps_the_forget_gradient_at_one_norm(monkeypatch):
    """A share of the first retain gradient's, however large or small the gradients of a step are."""
    pairs = [tuple(torch.randn(2, 50) * scale) for scale in (3.0, 1e-3, 50.0)]
    queue, moved = iter(pairs), []
    monkeypatch.setattr(siss, "_gradients", lambda *_: next(queue))
    monkeypatch.setattr(siss, "descend", lambda problem, steps, lr, direction: moved.extend(direction() for _ in "ab"))
    siss.train(None, steps=2, lr=1e-3, share=0.1)
    for direction, (g_x, g_a) in zip(moved, pairs[1:], strict=True):
        torch.testing.assert_close((g_x - direction).norm(), 0.1 * pairs[0][0].norm(), rtol=1e-3, atol=0)
        assert direction @ g_a < g_x @ g_a


@given(gradient_pairs(), st.floats(0.01, 2))
def test_erasediff_descends_the_forget_loss_fast_enough_and_no_faster(pair, eta):
    g_f, g_r = pair
    w = erasediff.dual_weight(g_r, g_f, eta)
    slack = (g_r + w * g_f) @ g_f - eta * (g_f @ g_f)
    scale = 1e-9 * (g_f.norm() ** 2 + g_f.norm() * g_r.norm())
    assert w >= 0
    assert slack >= -scale
    assert w == 0 or slack <= scale


def test_esd_goes_as_far_beyond_as_it_is_told():
    neutral, forget = torch.randn(2, 3, 3, 4, 4)
    assert torch.equal(esd.away(neutral, forget, 0.0), neutral)
    torch.testing.assert_close(esd.away(neutral, forget, -1.0), forget)
    torch.testing.assert_close((esd.away(neutral, forget, 1.0) + forget) / 2, neutral)


def test_esd_asks_for_the_same_noise_in_every_parameterisation(denoiser):
    _, _, t, x_t = picture_and_noise(denoiser)
    neutral, forget = torch.randn(2, *x_t.shape, generator=torch.Generator().manual_seed(2))
    own = eps_hat(denoiser, esd.away(neutral, forget, 2.0), x_t, t)
    noises = esd.away(*(eps_hat(denoiser, one, x_t, t) for one in (neutral, forget)), 2.0)
    torch.testing.assert_close(own, noises, rtol=1e-3, atol=1e-3)


losses = st.floats(0, 10)


@given(losses, losses, st.floats(1, 2000))
def test_duo_starts_at_log_2(win, lose, beta):
    win, lose = torch.tensor([win]), torch.tensor([lose])
    torch.testing.assert_close(duo.preference(win, win, lose, lose, beta), torch.full((1,), math.log(2)))


@given(losses, losses, losses, losses, st.floats(1, 20))
def test_duo_is_a_probability_of_one_of_the_two(win, win_base, lose, lose_base, beta):
    win, win_base, lose, lose_base = (torch.tensor([v], dtype=torch.float64) for v in (win, win_base, lose, lose_base))
    this = duo.preference(win, win_base, lose, lose_base, beta)
    other = duo.preference(lose, lose_base, win, win_base, beta)
    torch.testing.assert_close((-this).exp() + (-other).exp(), torch.ones(1, dtype=torch.float64))


def test_duo_wants_the_winner_likelier_and_the_loser_less_likely():
    win, lose = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    duo.preference(win, torch.ones(1), lose, torch.ones(1), 5.0).backward()
    assert win.grad > 0
    assert lose.grad < 0


def test_duo_edits_stay_with_their_forget_picture(monkeypatch):
    monkeypatch.setattr(Denoiser, "denoise", lambda self, x_t, *_, **__: x_t)
    far = torch.tensor([100.0, -100.0, 0.0])[:, None, None, None].expand(-1, 3, pico.SIDE, pico.SIDE)
    with open_for(pico.ddpm(), "ddpm", "lora", x_f=far) as problem:
        edits = duo._edits(problem, 8)
        assert edits.mean(dim=(1, 2, 3)).div(10).round().sign().tolist() == [1, -1, 0] * 3
        lose, win = duo._pairs(problem, far, 16).x.split(16)
        assert torch.equal(lose, win)


def bank_and_state(seed, level):
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randn(12, 3, 4, 4, generator=generator)
    s = torch.full((5, 1, 1, 1), level)
    a = (1 - s**2).sqrt()
    return (
        bank,
        a * torch.randn(5, 3, 4, 4, generator=generator) + s * torch.randn(5, 3, 4, 4, generator=generator),
        a,
        s,
    )


@given(st.integers(0, 2**31), st.floats(1e-3, 0.999), st.integers(1, 20))
def test_retrack_heads_for_the_convex_hull_of_its_neighbours(seed, level, k):
    bank, x_t, a, s = bank_and_state(seed, level)
    w = retrack.posterior_weights(x_t, bank, a, s, k)
    assert (w >= 0).all()
    assert ((w > 0).sum(dim=1) <= k).all()
    torch.testing.assert_close(w.sum(dim=1), torch.ones(5, dtype=w.dtype))
    mean = retrack.posterior_mean(x_t, bank, a, s, k)
    torch.testing.assert_close(mean, torch.einsum("br,rchw->bchw", w.float(), bank), rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**31), st.integers(1, 20))
def test_retrack_heads_for_the_nearest_picture_at_low_noise(seed, k):
    bank, x_t, a, s = bank_and_state(seed, 1e-3)
    nearest = bank[torch.cdist((x_t / a).flatten(1), bank.flatten(1)).argmin(dim=1)]
    torch.testing.assert_close(retrack.posterior_mean(x_t, bank, a, s, k), nearest)


def test_retrack_heads_for_the_mean_of_all_where_nothing_is_decided():
    bank, x_t, _, s = bank_and_state(0, 1.0)
    mean = retrack.posterior_mean(x_t, bank, torch.zeros_like(s), s, len(bank))
    torch.testing.assert_close(mean, bank.mean(dim=0).expand_as(mean))


@given(st.integers(0, 2**31), st.floats(0.05, 0.95))
def test_retrack_weighs_pictures_by_their_likelihood(seed, level):
    bank, x_t, a, s = bank_and_state(seed, level)
    d = (x_t[:, None] - a[:, None] * bank).square().flatten(2).sum(dim=2) / (2 * s.flatten()[:, None] ** 2)
    w = retrack.posterior_weights(x_t, bank, a, s, len(bank))
    torch.testing.assert_close(w.float(), (-d.double()).softmax(dim=1).float(), rtol=1e-2, atol=1e-4)


@given(gradient_pairs())
def test_munba_weights_solve_nashs_equation(pair):
    """w_i ⟨g_i, d⟩ = 1 for both: each gains, and by equal shares."""
    g_f, g_r = pair
    w_f, w_r = munba.nash_weights(g_f, g_r)
    d = w_f * g_f + w_r * g_r
    assert w_f > 0
    assert w_r > 0
    assert d @ g_f > 0
    assert d @ g_r > 0
    one = torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(w_f * (g_f @ d), one, rtol=1e-6, atol=0)
    torch.testing.assert_close(w_r * (g_r @ d), one, rtol=1e-6, atol=0)
    torch.testing.assert_close(d.norm(), one * math.sqrt(2), rtol=1e-6, atol=0)


@given(gradient_pairs(), st.floats(1e-3, 1e3))
def test_munbas_direction_does_not_depend_on_how_large_a_loss_is(pair, scale):
    g_f, g_r = pair
    (w_f, w_r), (v_f, v_r) = munba.nash_weights(g_f, g_r), munba.nash_weights(scale * g_f, g_r)
    torch.testing.assert_close(w_f * g_f + w_r * g_r, v_f * scale * g_f + v_r * g_r, rtol=1e-6, atol=1e-9)


def test_munba_stays_where_there_is_nothing_to_bargain_for():
    g = torch.randn(10)
    w_f, w_r = munba.nash_weights(g, -g)
    assert (w_f * g - w_r * g).norm() < 1e-2


@given(gradient_pairs())
def test_selective_amnesia_pays_nothing_at_home_and_more_the_further(pair):
    theta, theta_0 = pair
    fisher = theta_0.square()
    assert selective_amnesia.fisher_penalty(theta_0, theta_0, fisher) == 0
    near, far = (selective_amnesia.fisher_penalty(theta_0 + k * theta, theta_0, fisher) for k in (1, 2))
    assert 0 <= near <= far


@given(gradient_pairs())
def test_selective_amnesias_gradient_is_that_of_its_penalty(pair):
    theta, theta_0 = pair
    theta.requires_grad_(True)
    fisher = theta_0.square()
    wanted = torch.autograd.grad(selective_amnesia.fisher_penalty(theta, theta_0, fisher), theta)[0]
    torch.testing.assert_close(selective_amnesia.penalty_gradient(theta.detach(), theta_0, fisher), wanted)


@each_mode
def test_negated_lora_is_the_opposite_of_having_learned_the_picture(pipe, family, mode):
    """Scaled back by -1/strength it is what plain training on x_f from the same draws makes of the model."""
    with open_for(pipe, family, mode) as problem:
        descend(problem, 2, 1e-3, lambda: gradient(problem, denoising_loss(problem, forget_rows(problem, ROWS))))
        learned = flat(problem)
    with open_for(pipe, family, mode) as problem:
        start = flat(problem)
        negated_lora.train(problem, steps=2, lr=1e-3, strength=0.5, rows=ROWS)
        negated = flat(problem)
        problem.scale(-2.0)
        torch.testing.assert_close(flat(problem), learned)
    if mode == "full":
        torch.testing.assert_close(negated - start, -0.5 * (learned - start), rtol=1e-3, atol=1e-6)
