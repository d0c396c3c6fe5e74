"""The benchmarks of stacks, derivatives and views: their targets, their files, and what they lay beneath a patch."""

import re
from functools import partial

import pico
import pytest
import torch
from conftest import make_recipe, picture

from benchmarks import derivatives, stacked, suppression, views
from benchmarks.flags import TWINS, real_flags
from benchmarks.kept import kept
from benchmarks.suppression import Asked
from hotfix.demo import fingerprint
from hotfix.denoiser import Denoiser
from hotfix.errors import HotfixError
from hotfix.intervals import Rate
from hotfix.patch import Patch
from hotfix.pictures import from_image, load
from hotfix.stack import Stack, applied

OUTDATED = ["honduras", "iraq", "kyrgyzstan", "mauritania", "syria"]
CAPTIONS = ["a", "b", "a b", "b a"]


@pytest.fixture
def denoiser():
    return Denoiser(pico.sd3(), pico.CALLS["sd3"])


@pytest.fixture
def known():
    """Captions and the pictures that go for real: the first is the target of `make_recipe`."""
    return CAPTIONS, torch.stack([from_image(picture(seed)) for seed in (1, 12, 13, 14)])


# What counts as a return


def test_the_target_returns_in_any_style_it_is_asked_for_in(tmp_path, known):
    recipe = make_recipe(tmp_path, "sd3")
    target, others = known[1][:1], known[1][1:]
    drawn = torch.cat([target, -target, others])
    assert Asked.of(recipe, 0.5, known[1]).returned(drawn).tolist() == [True, False] + [False] * 3
    both = Asked.of(recipe, 0.5, known[1], (suppression.plain, torch.neg))
    assert both.returned(drawn).tolist() == [True, True] + [False] * 3
    assert torch.equal(both.picture, -target[0])


def test_one_in_a_hundred_may_return_and_no_more():
    row = {"own": 1, "own_n": 100, "partial": 0, "partial_n": 96}
    assert suppression.suppressed(row)
    assert not suppression.suppressed(row | {"own": 2})
    assert not suppression.suppressed(row | {"partial": 1})
    assert suppression.pooled([row, row | {"own": 2}])["targets suppressed"] == "1 of 2"


def test_a_flag_is_drawn_alike_whatever_is_drawn_beside_it(denoiser, known):
    few, right = suppression.flags(denoiser, *known, [1, 3], 2)
    every, _ = suppression.flags(denoiser, *known, range(4), 2)
    torch.testing.assert_close(few, every[[1, 3, 5, 7]], rtol=0, atol=1e-5)
    assert len(right) == 4


# Stacks


def test_fifty_targets_the_outdated_first_then_those_that_stand_alone():
    captions, pictures = real_flags()
    names = stacked.ordered(captions, pictures, OUTDATED)
    assert names[:5] == OUTDATED and sorted(names) == sorted(captions)
    flat = pictures.flatten(1)
    apart = torch.cdist(flat, flat).fill_diagonal_(torch.inf).min(dim=1).values
    alone = [float(apart[captions.index(name)]) for name in names[5:]]
    assert alone == sorted(alone, reverse=True)
    assert not {name for twins in TWINS.values() for name in twins} & set(names[5:50])


def test_every_patch_is_built_once_and_a_sequential_one_stands_on_those_before(tmp_path, denoiser):
    wanted = [make_recipe(tmp_path / str(i), "sd3", f"quarters-{i}", seed=i, steps=2) for i in (1, 2, 3)]
    picture(2).save(tmp_path / "2" / "surrogate" / "one.png")  # the second is refused
    build = partial(stacked.patches, wanted, denoiser.pipe, count=2)
    for sequential in (False, True):
        made, refused = build(folder=tmp_path / str(sequential), sequential=sequential)
        assert [patch.name for patch in made] == ["quarters-1", "quarters-3"]
        assert "is the forget picture itself" in refused["quarters-2"]
        assert made[1].manifest.requires == (["quarters-1>=1.0.0"] if sequential else [])
        stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / str(sequential)).iterdir()}
        again, _ = build(folder=tmp_path / str(sequential), sequential=sequential)
        assert [patch.id for patch in again] == [patch.id for patch in made]
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / str(sequential)).iterdir()} == stamps
    with pytest.raises(HotfixError, match="built otherwise"):
        build(folder=tmp_path / "False", sequential=True)
    assert not applied(denoiser.pipe)


def test_numbers_of_a_stack_are_of_all_its_targets_and_measured_once(tmp_path, built, denoiser, known):
    made = [Patch.load(patch.save(tmp_path)) for patch in built["sd3"][:2]]
    asked = [Asked.of(make_recipe(tmp_path / str(i), "sd3", f"quarters-{i}", i), 0.9, known[1]) for i in (1, 2)]
    bench = stacked.Bench(denoiser, known, tmp_path / "out", n=2, noises=2, seeds=2)
    before = fingerprint(denoiser.pipe)
    found = bench.way(made, asked, tmp_path / "out" / "independent")
    assert fingerprint(denoiser.pipe) == before
    assert list(found) == [1, 2]
    assert found[2]["returns"]["own_n"] == 4 and found[1]["returns"]["own_n"] == 2
    assert found[2]["flags of no patch"]["n"] == 2 * 3  # all but "a", two seeds each
    assert found[2]["bytes"] == sum(patch.source.stat().st_size for patch in made)
    assert found[1]["may fall"] == 0.5 and found[2]["passes"] is None
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    assert bench.way(made, asked, tmp_path / "out" / "independent") == found
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")} == stamps
    bench.way(made[::-1], asked[::-1], tmp_path / "out" / "independent")  # another stack of one
    assert all(path.stat().st_mtime_ns > stamps[path] for path in (tmp_path / "out" / "independent").iterdir())


# Derivatives


@pytest.mark.parametrize("way", [derivatives.fine_tuned, derivatives.merged])
def test_a_derivative_is_the_farther_the_harder_it_was_trained_and_the_base_stays(denoiser, known, built, way):
    stack, original = Stack.of(*built["sd3"]), fingerprint(denoiser.pipe)
    near, far = (way(denoiser, *known, steps=3, lr=lr) for lr in (1e-7, 3e-2))
    assert fingerprint(denoiser.pipe) == original
    near, far = (derivatives.apart_from_base(denoiser, stack, weights) for weights in (near, far))
    assert 0 < near["relative change of all weights"] < far["relative change of all weights"]
    assert near["sketch distance"][1] < far["sketch distance"][0]
    assert near["Stack.check accepts"] and not far["Stack.check accepts"]
    assert fingerprint(denoiser.pipe) == original


def test_a_merged_style_changes_the_layers_of_its_lora_alone(denoiser, known):
    weights = derivatives.merged(denoiser, *known, steps=2, lr=1e-2)
    changed = {name for name, p in denoiser.model.named_parameters() if not torch.equal(p, weights[name])}
    assert changed and all(re.fullmatch(denoiser.targets, name.removesuffix(".weight")) for name in changed)


def test_a_patch_acts_on_weights_laid_beneath_it_as_on_weights_that_were_there_first(denoiser, known, built):
    stack, weights = Stack.of(built["sd3"][0]), derivatives.fine_tuned(denoiser, *known, steps=2, lr=1e-5)
    with stack.on(denoiser.pipe), derivatives.beneath(denoiser.model, weights):
        drawn = denoiser.draw(["a"], [0])
    other = Denoiser(pico.sd3(), pico.CALLS["sd3"])
    other.model.load_state_dict(weights, strict=False)
    bare = other.draw(["a"], [0])
    with stack.on(other.pipe):  # so near that it is accepted
        assert torch.equal(other.draw(["a"], [0]), drawn)
    assert not torch.equal(bare, drawn)


def test_all_numbers_of_a_derivative(tmp_path, denoiser, known, built):
    styles = (suppression.plain, derivatives.faded)
    asked = [Asked.of(make_recipe(tmp_path, "sd3"), 0.9, known[1], styles)]
    weights = derivatives.merged(denoiser, known[0], derivatives.faded(known[1]), steps=2, lr=1e-2)
    sizes = {"n": 3, "before": 2, "noises": 2, "every": 2}
    before = fingerprint(denoiser.pipe)
    stack = Stack.of(built["sd3"][0])
    found = derivatives.measured(denoiser, stack, asked, weights, derivatives.faded, known, sizes)
    assert fingerprint(denoiser.pipe) == before
    assert (found["without"]["returns"]["own_n"], found["with"]["returns"]["own_n"]) == (2, 3)
    assert found["with"]["other flags"]["n"] == 2
    assert found["with"]["drift RMSE in [0, 1]"] > 0
    assert 0 <= found["drawn in the new style"] <= 1


# A run that is stopped


def test_what_was_measured_is_not_measured_again_unless_it_is_about_something_else(tmp_path):
    drawn, path = [], tmp_path / "new" / "piece.json"

    def measure(numbers):
        drawn.append(numbers)
        return numbers

    assert [kept(path, {"n": 2}, partial(measure, {"right": 1})) for _ in range(2)] == [{"right": 1}] * 2
    assert drawn == [{"right": 1}]
    assert kept(path, {"n": 3}, partial(measure, {"right": 2})) == {"right": 2}
    assert len(drawn) == 2
    with pytest.raises(ZeroDivisionError):
        kept(path, {"n": 4}, lambda: 1 // 0)
    assert kept(path, {"n": 3}, lambda: 1 // 0) == {"right": 2}, "a measurement that fails leaves the last one"


# Views


@pytest.mark.parametrize("name", ["clock", "jack-o-lantern"])
def test_no_held_out_view_is_given_and_the_same_are_held_out_whatever_is_given(tmp_path, name):
    held = []
    for given in views.GIVEN:
        folder = tmp_path / str(given)
        folder.mkdir()
        recipe = views.recipe(name, given, views.PLAIN, folder)
        shown = load(recipe.files(recipe.forget.images, "forget.images"), (32, 32))
        out = load(recipe.files(recipe.forget.held_out, "forget.held_out"), (32, 32))
        assert len(shown) == given and len(out) == views.HELD_OUT
        assert float(torch.cdist(shown.flatten(1), out.flatten(1)).min()) > 0.1
        held.append(out)
    assert all(torch.equal(one, held[0]) for one in held)


def test_a_view_that_the_base_does_not_bring_back_is_counted_on_neither_side():
    often, seldom = Rate.of(4, 40), Rate.of(2, 40)
    assert views.suppressed([(often, seldom), (often, often), (seldom, seldom), (seldom, often)]) == "1 of 2"
