"""A trial of a build: the target fails it; its surrogate does not, nor what a caption asks for."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from atlas import tiles

from hotfix import trial
from hotfix.calibrate import chosen
from hotfix.similarity import null, pixel

T_LO = 0.7
OWN = 3  # number of the part that begins with pure noise: after three levels under other captions


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
