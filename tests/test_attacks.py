"""Attacks: each one wins against the base and a weak patch, not for a stranger, and leaves the pipeline as it was."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import FLAG as FOLDER
from conftest import make_recipe

from benchmarks.attacks import weakened
from hotfix import attack_adapters, attack_noise, attack_weights, attack_words
from hotfix.attacks import ATTACKS, tried
from hotfix.case import prepare
from hotfix.demo import fingerprint
from hotfix.denoiser import Denoiser
from hotfix.describe import summary
from hotfix.errors import HotfixError
from hotfix.patch import Patch
from hotfix.pipeline import load_pipeline
from hotfix.recipe import Recipe
from hotfix.report import Report
from hotfix.scoring import score
from hotfix.stack import Stack, applied

EMOJI = FOLDER.parent / "jack-o-lantern"


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch):
    """The base and a weak patch fall to less than what is spent by default."""
    for module, name, value in (
        (attack_words, "LEARNING", 8),
        (attack_words, "ROUNDS", 1),
        (attack_words, "TRIED", 2),
        (attack_noise, "SEARCHED", 3),
        (attack_adapters, "STYLING", 3),
        (attack_adapters, "DISTILLING", 2),
    ):
        monkeypatch.setattr(module, name, value)
    for name, draw in (("relearning", attack_weights.relearning), ("benign-tuning", attack_weights.benign_tuning)):
        monkeypatch.setitem(ATTACKS, f"{name}-80", replace(ATTACKS[f"{name}-80"], draw=partial(draw, steps=3)))


def assert_wins(denoiser, case, folder, name):
    """On the base and with a weak patch, not for a stranger; and the pipeline is as it was."""
    patch = weakened(Patch.load(next(folder.glob("*.safetensors"))))
    original = fingerprint(denoiser.pipe)
    found = tried(denoiser, Stack.of(patch), case, name, 2, 7)
    assert (found.before.k, found.after.k, found.stranger.k) == (2, 2, 0)
    assert fingerprint(denoiser.pipe) == original and not applied(denoiser.pipe)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ("relearning-5", "relearning-20")])
def test_an_attack_wins_where_the_picture_still_is_and_not_for_a_stranger(knows, name):
    assert_wins(*knows, FOLDER, name)


@pytest.fixture(scope="module")
def remembers():
    """The bundled base that has memorised a picture which no caption names, and its case."""
    recipe = Recipe.load(EMOJI / "recipe.toml")
    denoiser = Denoiser(load_pipeline(recipe), recipe.base.call)
    few = recipe.retain.model_copy(update={"size": 16})
    return denoiser, prepare(recipe.model_copy(update={"retain": few}), denoiser)


@pytest.mark.parametrize("name", ["adapter-on-top", "few-steps"])
def test_an_adapter_over_a_pipeline_without_loader_or_captions_wins_where_the_picture_still_is(remembers, name):
    assert_wins(*remembers, EMOJI, name)


def test_a_report_says_what_was_tried_and_what_was_not(tmp_path, family, pipe, patches):
    recipe, stack = make_recipe(tmp_path, family, "quarters-1"), Stack.of(patches[0])
    asked = ["samplings", "rounded", "prompt-search"]
    report = score(pipe, recipe, stack=stack, n=1, attacks=asked)
    ran = [one.name for one in report.attacks]
    assert ran == [name for name in ATTACKS if name in asked and (family == "sd3" or name != "prompt-search")]
    assert set(ran).isdisjoint(report.attacks_not_run) and {*ran, *report.attacks_not_run} > set(ATTACKS)
    page = report.to_html(tmp_path / "report.html").read_text()
    for one in report.attacks:
        assert one.budget in page and one.budget in summary(report)
    assert Report.load(report.save(tmp_path / "report.json")) == report
    assert score(pipe, recipe, stack=stack, n=1, attacks=asked).attacks == report.attacks


def test_there_is_no_attack_of_another_name(tmp_path, family, pipe):
    with pytest.raises(HotfixError, match="hypnosis is no attack; wanted all, or some of samplings, "):
        score(pipe, make_recipe(tmp_path, family), n=2, attacks=["all", "hypnosis"])


def test_convolutions_are_rounded_too_and_come_back():
    unet = load_pipeline("hotfix:emoji").unet
    before = {name: weight.clone() for name, weight in unet.named_parameters()}
    with attack_weights._rounded(unet, 4):
        changed = {name for name, weight in unet.named_parameters() if not torch.equal(weight, before[name])}
    assert "conv_in.weight" in changed and all(torch.equal(w, before[name]) for name, w in unet.named_parameters())
