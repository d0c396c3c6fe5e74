"""Two patches on the same seeds: each as it is alone, pair by pair, and the pipeline as it was."""

from dataclasses import replace

import pytest
import torch
from conftest import make_recipe, picture

from hotfix import page, paired, partial
from hotfix.case import prepare
from hotfix.comparing import compare
from hotfix.demo import fingerprint
from hotfix.denoiser import Denoiser
from hotfix.describe import beside
from hotfix.errors import BaseMismatch, HotfixError, StackError
from hotfix.interfering import interference
from hotfix.intervals import Rate
from hotfix.page import Gallery
from hotfix.paired import MustStay, Trial
from hotfix.pictures import from_image
from hotfix.recipe import Recipe
from hotfix.report import PatchRef
from hotfix.stack import Stack, applied
from hotfix.together import Compared, Comparison


def compared(alone: int) -> Compared:
    ref = PatchRef(name="a", version="1.0.0", id="sha256:0")
    return Compared(patch=ref, returned=Rate.of(alone, 20), alone=alone, drift=0.0, bytes=1)


def test_each_has_the_numbers_that_it_has_in_a_stack(tmp_path, family, pipe, patches):
    a, b = patches[:2]
    recipe, original = make_recipe(tmp_path, family, a.name), fingerprint(pipe)
    found = compare(pipe, recipe, a, b, n=4)
    held = interference(pipe, [recipe], stack=Stack.of(a, b), n=4).patches[0]
    assert found.bare == held.bare and found.patches[0].returned == held.alone
    assert found.patches[0].drift == pytest.approx(held.drift) and found.n > 1
    assert fingerprint(pipe) == original and not applied(pipe)
    for one in found.patches:
        assert f"{one.patch.name} 1.0.0" in beside(found)


def test_few_captions_of_what_must_stay_are_drawn_several_times(tmp_path, pipe, family, patches):
    recipe = make_recipe(tmp_path, family)
    found = compare(pipe, recipe, *patches[:2], n=2)
    assert found.n == recipe.retain.size and found.farther is not None


def test_where_everything_that_must_stay_is_the_target_it_says_so(tmp_path, family, pipe):
    denoiser = Denoiser(pipe, (recipe := make_recipe(tmp_path, family)).base.call)
    case = prepare(recipe, denoiser)
    all_alike = replace(case, targets=tuple(replace(target, tau=-1e9) for target in case.targets))
    with pytest.raises(HotfixError, match="all 16 drawings of what must stay are the target"):
        MustStay.of(denoiser, [all_alike], 0)


def test_recipes_of_different_calls_are_not_measured_with_one_of_them(tmp_path, family, pipe, patches):
    a, b = patches[:2]
    one, two = make_recipe(tmp_path, family, a.name), make_recipe(tmp_path, family, b.name, seed=2)
    call = two.base.call | {"num_inference_steps": two.base.call.get("num_inference_steps", 1) + 1}
    two = two.model_copy(update={"base": two.base.model_copy(update={"call": call})})
    with pytest.raises(StackError, match=f"{b.name} is measured with .*as of {a.name}"):
        interference(pipe, [one, two], stack=Stack.of(a, b), n=4)


def test_a_patch_beside_itself_differs_in_nothing(tmp_path, family, pipe, patches):
    found = compare(pipe, make_recipe(tmp_path, family), patches[0], patches[0], n=2)
    assert [one.alone for one in found.patches] == [0, 0] and found.chance == 1
    assert found.farther == (0, 0)


def test_pictures_are_of_the_same_seeds_and_targets_a_mosaic(tmp_path, family, pipe, patches):
    rows = {}
    for show in (True, False):
        gallery = Gallery(show)
        compare(pipe, make_recipe(tmp_path, family), patches[0], patches[0], n=2, gallery=gallery)
        rows[show] = dict(gallery.rows)
    assert "what must stay" in rows[True] and len(rows[True]) == (4 if family == "sd3" else 2)
    for bare, first, second in rows[True].values():
        assert torch.equal(first, second) and not torch.equal(bare, first)
    gallery.add("own caption", rows[True]["what must stay"], lambda drawn: torch.ones(len(drawn), dtype=torch.bool))
    text = page.beside("a beside b", ["one line"], ["honest"], tmp_path / "page.html", gallery).read_text()
    assert "shown as a mosaic" in text and text.count("data:image/png") == len(gallery.rows)
    assert "with the first" in text and "<style>" in text


def test_no_drawing_of_a_held_out_picture_is_shown_beside_another(tmp_path, pipe, family, patches, monkeypatch):
    recipe = make_recipe(tmp_path, family)
    picture(5).save(tmp_path / "held.png")
    recipe = Recipe.parse(
        recipe.model_dump() | {"forget": recipe.forget.model_dump() | {"held_out": ["held.png"]}}, tmp_path
    )
    shown = []
    monkeypatch.setattr("hotfix.comparing._show", lambda denoiser, case, *_: shown.append(case))
    compare(pipe, recipe, patches[0], patches[0], n=2, gallery=Gallery())
    blind = replace(shown[0], targets=tuple(replace(one, null=2.0, tau=2.0) for one in shown[0].targets))
    assert blind.alike(from_image(picture(5))[None]).tolist() == [True]


def test_what_is_on_is_on_again_afterwards(tmp_path, family, pipe, patches):
    Stack.of(*patches).apply(pipe)
    before = set(applied(pipe))
    compare(pipe, make_recipe(tmp_path, family), patches[0], patches[1], n=2)
    assert set(applied(pipe)) == before


def test_chance_is_the_exact_test_on_pairs():
    for first, second, p in ((0, 0, 1.0), (6, 0, 2 / 2**6), (0, 6, 2 / 2**6), (3, 3, 1.0)):
        found = Comparison(bare=Rate.of(0, 20), patches=[compared(first), compared(second)], n=1, farther=None)
        assert found.chance == pytest.approx(p)


def test_a_patch_of_another_base_is_refused_before_anything_is_drawn(tmp_path, family, pipe, patches, built):
    other = next(made[0] for name, made in built.items() if name != family)
    with pytest.raises(BaseMismatch):
        compare(pipe, make_recipe(tmp_path, family), patches[0], other, n=2, stage=pytest.fail)


def test_no_noise_is_drawn_under_twice(tmp_path, family, pipe, monkeypatch):
    seeds = []

    def in_turn(targets, n, seed):
        seeds.append(seed)
        return partial.in_turn(targets, n, seed)

    monkeypatch.setattr(paired, "in_turn", in_turn)
    denoiser = Denoiser(pipe, (recipe := make_recipe(tmp_path, family)).base.call)
    Trial(denoiser, prepare(recipe, denoiser), 0, 4).hits(Stack())
    assert len(seeds) > 1 and len(set(seeds)) == len(seeds)
