"""A trial of a build: the target fails it; its surrogate does not, nor what a caption asks for."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from atlas import tiles

from hotfix import trial
from hotfix.calibrate import chosen
from hotfix.rows import NEARBY, forget_rows
from hotfix.similarity import null, pixel

T_LO = 0.7
OWN = ("own", 1.0)  # from pure noise


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, number in {"NOISES": 4, "MORE": 12, "STEPS": 4}.items():
        monkeypatch.setattr(trial, name, number)


@pytest.fixture(scope="module")
def conditions(knows):
    denoiser, case = knows
    return {kind: denoiser.embed(case.forget_kinds()[kind]) for kind in ("own", "random")}


@pytest.fixture(scope="module")
def turned(knows):
    """The base draws the surrogate for the target's caption, and never saw the target: as if it were patched."""
    was = knows[1].targets[0]
    similarity = pixel(was.surrogates[0], was.picture[None])
    return replace(
        was,
        picture=was.surrogates[0],
        surrogates=was.picture[None],
        x_f=was.x_s,
        x_s=was.x_f,
        similarity=similarity,
        null=null(similarity, tiles("flags")[1]),
    )


def failed(knows, conditions, target, suspect=None):
    denoiser, case = knows
    window = chosen(denoiser, list(conditions), "uniform", (0.25, 0.75), T_LO)
    return trial.failure(denoiser, target, case, conditions, window, 0, suspect)


@contextmanager
def counting(denoiser, costs):
    """Rows that the network is asked, added to the last of some numbers."""

    def count(model, args, kwargs):
        costs[-1] += len(args[0])

    hook = denoiser.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def test_a_base_that_draws_the_target_fails(knows, conditions):
    _, case = knows
    assert failed(knows, conditions, case.targets[0]) is not None


def test_a_base_that_draws_the_surrogate_instead_passes(knows, conditions, turned):
    assert failed(knows, conditions, turned) is None


def test_it_fails_if_its_own_caption_draws_neither(knows, conditions, turned):
    _, case = knows
    row = int(torch.cdist(case.strangers.flatten(1), turned.surrogates.flatten(1)).argmax())
    elsewhere = replace(turned, surrogates=case.strangers[row][None])
    assert failed(knows, conditions, elsewhere) == OWN


def test_drawings_may_be_as_alike_as_a_surrogate_or_as_the_picture_of_their_caption(knows):
    _, case = knows
    target = case.targets[0]
    named = next(caption for caption in case.retain_captions if caption)
    alike = float(target.similarity(case.retain[[c == named for c in case.retain_captions]]).max())
    surrogate = float(target.similarity(target.surrogates).max())
    like = target.similarity(case.retain)
    may = trial._rightful(target, case.retain_captions, like, ["", "never drawn", named]).tolist()
    assert may == pytest.approx([surrogate, surrogate, max(surrogate, alike)])


def test_what_lies_far_from_its_bar_costs_a_quarter_of_what_comes_close(knows, conditions, turned, monkeypatch):
    denoiser, _ = knows
    costs = []
    for close in (0.0, 2.0):
        monkeypatch.setattr(trial, "CLOSE", close)
        costs.append(0)
        with counting(denoiser, costs):
            assert failed(knows, {"random": conditions["random"]}, turned) is None
    assert costs[1] == 4 * costs[0]


def test_drift_is_looked_at_on_other_pictures_every_turn_in_as_many_steps_as_production(knows):
    denoiser, case = knows
    rows, near = denoiser.embed(case.retain_captions), torch.arange(len(case.retain))
    first, again, other = (trial.held_out(denoiser, case, rows, near, 0, turn) for turn in (0, 0, 1))
    assert torch.equal(first, again) and trial.drift(first, again) == 0
    assert trial.drift(first, other) > 0
    with counting(denoiser, asked := [0]):
        trial.held_out(denoiser, case, rows, near, 0, 0)
    each = 2 if denoiser.guidance > 1 else 1
    assert asked[0] == each * trial.DRIFT_ROWS * denoiser.call["num_inference_steps"]


def test_half_of_a_targets_rows_begin_where_its_last_trial_failed(knows, conditions):
    denoiser, case = knows
    windows = (chosen(denoiser, ["random"], "fixed", (0.2, 0.4), 0.0),)

    def high(failing):
        generator = torch.Generator().manual_seed(0)
        among = {"random": conditions["random"]}
        begun = forget_rows(denoiser, case, windows, among, 64, generator, failing).begun
        assert (((begun - 0.9).abs() <= NEARBY) | (begun < 0.5)).all()
        return int((begun > 0.5).sum())

    assert 20 < high({0: ("random", 0.9)}) < 44
    assert high({}) == high({1: ("random", 0.9)}) == 0
