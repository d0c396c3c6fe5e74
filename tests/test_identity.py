"""One subject in several pictures: views change alike, shifts keep the edit, held-out pictures are only scored."""

from dataclasses import replace

import pico
import pytest
import torch
from conftest import make_recipe, picture

from hotfix import checkpoint, subject
from hotfix.augment import augmented
from hotfix.building import build
from hotfix.calibrate import chosen
from hotfix.case import VIEWS, prepare
from hotfix.denoiser import Denoiser
from hotfix.describe import describe, summary
from hotfix.errors import ForgetConflict, RecipeError
from hotfix.page import Gallery
from hotfix.patch import Patch
from hotfix.pictures import from_image, to_images
from hotfix.recipe import Recipe
from hotfix.report import Report
from hotfix.rows import FARTHEST, forget_rows
from hotfix.scoring import score
from hotfix.similarity import pixel
from hotfix.stack import Stack
from hotfix.trial import failure

EVERY = ["shift", "zoom", "turn", "light", "mirror"]


def smooth(side=16, wide=16):
    """A picture of low contrast without sharp edges, (1, 3, side, wide)."""
    x, y = torch.meshgrid(torch.linspace(-1, 1, wide), torch.linspace(-1, 1, side), indexing="xy")
    return 0.4 * torch.stack([torch.sin(2 * x + y), torch.cos(x - 2 * y), torch.sin(3 * y)])[None]


def with_more(recipe, folder, kind="forget", seeds=(2,)):
    """The same recipe with more forget and surrogate pictures, or with held-out ones."""
    (folder / kind).mkdir(exist_ok=True)
    for seed in seeds:
        picture(seed).save(folder / kind / f"john-doe-{seed}.png")
        if kind == "forget":
            picture(seed + 100).save(folder / "surrogate" / f"john-doe-{seed}.png")
    data = recipe.model_dump()
    held = {"held_out": [f"{kind}/*.png"]} if kind != "forget" else {}
    return Recipe.parse(data | {"forget": data["forget"] | held}, folder=folder)


# Views


@pytest.mark.parametrize("kind", EVERY)
def test_every_kind_of_change_changes_a_little_and_a_seed_is_a_view(kind):
    whole = smooth()
    views = [augmented(whole, [kind], seed) for seed in range(8)]
    assert torch.equal(views[3], augmented(whole, [kind], 3))
    assert any(not torch.equal(view, views[0]) for view in views)
    assert max(float((view - whole).abs().max()) for view in views) > 0.05
    if kind != "mirror":
        assert all(float(pixel(whole[0])(view)) > 0.8 for view in views)


def test_no_kind_of_change_changes_nothing():
    torch.testing.assert_close(augmented(smooth(), [], 5), smooth(), rtol=0, atol=1e-5)


def test_a_picture_and_its_surrogate_are_changed_alike():
    both = torch.cat([smooth(), smooth().flip(1)])
    for seed in range(4):
        apart = torch.cat([augmented(one[None], EVERY, seed) for one in both])
        torch.testing.assert_close(augmented(both, EVERY, seed), apart)


def test_a_picture_is_mirrored_only_when_asked():
    half = torch.ones(1, 3, 16, 16)
    half[..., :8] = -1

    def mirrored(kinds):
        views = [augmented(half, kinds, seed) for seed in range(32)]
        return sum(bool(view[..., :4].mean() > view[..., -4:].mean()) for view in views)

    assert mirrored(["shift", "zoom", "turn", "light"]) == 0
    assert 8 <= mirrored(["mirror"]) <= 24


def test_one_more_kind_leaves_the_others_as_they_were():
    one_by_one = augmented(augmented(smooth(), ["turn"], 4), ["light"], 4)
    torch.testing.assert_close(augmented(smooth(), ["light", "turn"], 4), one_by_one, rtol=0, atol=1e-4)


def test_a_wide_picture_is_turned_and_not_sheared():
    wide = smooth(16, 32)
    square = wide[..., 8:24]
    inside = (..., slice(4, 12), slice(4, 12))
    for seed in range(4):
        turned = augmented(wide, ["turn"], seed)[..., 8:24]
        torch.testing.assert_close(turned[inside], augmented(square, ["turn"], seed)[inside], rtol=0, atol=1e-3)


def test_a_case_holds_the_same_views_again_and_none_unasked(tmp_path, family, pipe):
    denoiser = Denoiser(pipe, pico.CALLS[family])
    (bare,) = prepare(make_recipe(tmp_path, family), denoiser).targets
    first, second = (prepare(make_recipe(tmp_path, family, augment=["shift"]), denoiser).targets[0] for _ in range(2))
    assert bare.views == () and torch.equal(bare.picture, first.picture)
    assert len(first.views) == VIEWS
    for one, other in zip(first.views, second.views, strict=True):
        assert torch.equal(one.picture, other.picture) and torch.equal(one.x_s, other.x_s)
        assert not torch.equal(one.picture, first.picture)
        torch.testing.assert_close(one.x_f, denoiser.encode(one.picture[None]))
        assert bool(one.returned(one.picture[None]))


def test_a_view_that_another_caption_draws_is_a_conflict(tmp_path):
    """Mirrored, the flag of one country is the flag of another."""
    denoiser = Denoiser(pico.sd3(), pico.CALLS["sd3"])
    case = prepare(make_recipe(tmp_path, "sd3"), denoiser)
    drawn = case.retain[case.retain_captions.index("b")]
    to_images(drawn.flip(-1)[None])[0].save(tmp_path / "forget" / "one.png")
    with pytest.raises(ForgetConflict, match="a view of one for the caption 'b'"):
        prepare(make_recipe_again(tmp_path, "sd3", augment=["mirror"]), denoiser)
    assert prepare(make_recipe_again(tmp_path, "sd3"), denoiser).targets


def make_recipe_again(folder, family, **train):
    """`make_recipe` without writing its forget picture anew."""
    kept = (folder / "forget" / "one.png").read_bytes()
    recipe = make_recipe(folder, family, **train)
    (folder / "forget" / "one.png").write_bytes(kept)
    return recipe


# Rows


def rows_of(recipe, family, pipe, rows=64):
    denoiser = Denoiser(pipe, recipe.base.call)
    case = prepare(recipe, denoiser)
    kinds = case.forget_kinds()
    windows = tuple(chosen(denoiser, kinds, "uniform", (0.25, 0.75), one.t_lo) for one in case.targets)
    conditions = {kind: denoiser.embed(captions) for kind, captions in kinds.items()}
    return case, forget_rows(denoiser, case, windows, conditions, rows, torch.Generator().manual_seed(0))


def where(x, among):
    """Index of x among some latents, None if it is none of them."""
    return next((i for i, one in enumerate(among) if torch.equal(x, one)), None)


def test_a_row_of_a_view_heads_for_that_views_surrogate(tmp_path, family, pipe):
    case, rows = rows_of(make_recipe(tmp_path, family, augment=EVERY), family, pipe)
    looks = [case.targets[0], *case.targets[0].views]
    seen = [where(x, [look.x_f[0] for look in looks]) for x in rows.x_f]
    assert None not in seen and seen.count(0) >= 16 and len(set(seen)) > 4
    assert all(where(x, looks[i].x_s) is not None for i, x in zip(seen, rows.x_s, strict=True))


def test_one_forget_picture_is_neither_changed_nor_shifted_unasked(tmp_path, family, pipe):
    case, rows = rows_of(make_recipe(tmp_path, family), family, pipe)
    assert all(torch.equal(x, case.targets[0].x_f[0]) for x in rows.x_f)


@pytest.mark.parametrize("adjacency", ["auto", "bank"])
def test_a_shift_moves_both_ends_alike_and_never_far(tmp_path, family, pipe, adjacency):
    recipe = with_more(make_recipe(tmp_path, family, adjacency=adjacency), tmp_path)
    case, rows = rows_of(recipe, family, pipe)
    lengths = []
    for x_f, x_s in zip(rows.x_f, rows.x_s, strict=True):
        one = min(case.targets, key=lambda one: float((x_s - x_f - (one.x_s[0] - one.x_f[0])).abs().max()))
        edit = one.x_s[0] - one.x_f[0]
        torch.testing.assert_close(x_s - x_f, edit, rtol=0, atol=1e-4)
        shift = x_f - one.x_f[0]
        if (length := float(shift.norm())) > 0:
            along = [float(shift.flatten() @ (to - one.x_f[0]).flatten()) for to in one.adjacent]
            away = [float((to - one.x_f[0]).norm()) for to in one.adjacent]
            assert max(a / w for a, w in zip(along, away, strict=True)) == pytest.approx(length, rel=1e-4)
            assert length <= FARTHEST * float(edit.norm()) + 1e-4
        lengths.append(length)
    assert 0 < sum(length > 0 for length in lengths) < len(lengths) / 2
    assert len({round(length, 6) for length in lengths if length}) > 1


def test_there_is_no_shift_where_none_is_wanted(tmp_path, family, pipe):
    recipe = with_more(make_recipe(tmp_path, family, adjacency="none"), tmp_path)
    assert all(one.adjacent is None for one in rows_of(recipe, family, pipe, rows=1)[0].targets)


def test_one_picture_has_no_other_view_to_lean_towards(tmp_path, family, pipe):
    with pytest.raises(RecipeError, match="one forget picture"):
        prepare(make_recipe(tmp_path, family, adjacency="views"), Denoiser(pipe, pico.CALLS[family]))


# Builds


@pytest.mark.parametrize("choice", [{"augment": ["shift", "light"]}, {"adjacency": "bank"}])
def test_identity_changes_a_patch_and_the_same_recipe_gives_the_same_one(tmp_path, built, choice):
    recipe, pipe = make_recipe(tmp_path, "sd3", "quarters-1", **choice), pico.sd3()
    first, second = build(recipe, pipe), build(recipe, pipe)
    assert first.id == second.id
    assert first.manifest.digest != built["sd3"][0].manifest.digest
    assert ("shift, light" in describe(first)) == ("augment" in choice)


def test_a_posterior_mean_is_of_the_views_own_surrogates(tmp_path, family, pipe):
    recipe = make_recipe(tmp_path, family, augment=["shift"])
    data = recipe.model_dump()
    blended = Recipe.parse(data | {"surrogate": {"kind": "posterior"}}, folder=tmp_path)
    case, rows = rows_of(blended, family, pipe, rows=16)
    looks = [case.targets[0], *case.targets[0].views]
    for x_f, among in zip(rows.x_f, rows.blended, strict=True):
        assert torch.equal(among, looks[where(x_f, [look.x_f[0] for look in looks])].x_s)


def test_a_trial_is_passed_only_if_every_view_passes(tmp_path):
    denoiser = Denoiser(pico.ddpm(), pico.CALLS["ddpm"])
    case = prepare(make_recipe(tmp_path, "ddpm", augment=["shift"]), denoiser)
    far = -case.targets[0].picture[None]  # a surrogate like which nothing is drawn
    never, always = (replace(case.targets[0], null=null, views=(), surrogates=far) for null in (2.0, -2.0))
    window = chosen(denoiser, ["empty"], "uniform", (0.25, 0.75), 0.3)
    anything = torch.full((1, 3, pico.SIDE, pico.SIDE), 50.0)  # a stranger that nothing is near
    case = replace(case, retain=anything, x_r=anything, retain_captions=("",), twins=torch.zeros(1, dtype=torch.bool))

    def passed(*views):
        return failure(denoiser, replace(never, views=views), case, {"empty": {}}, window, 0) is None

    assert passed() and passed(never, never)
    assert not passed(never, always)


# Held-out pictures


@pytest.fixture
def held(tmp_path, family):
    return with_more(make_recipe(tmp_path, family, "quarters-1"), tmp_path, "held_out", seeds=(5, 6))


@pytest.fixture(scope="module")
def scored(tmp_path_factory, built):
    """A score without held-out pictures and one with two of them, of the same patch."""
    folder, pipe = tmp_path_factory.mktemp("scored"), pico.sd3()
    bare = make_recipe(folder, "sd3", "quarters-1")
    both = bare, with_more(bare, folder, "held_out", seeds=(5, 6))
    return [score(pipe, recipe, stack=Stack.of(built["sd3"][0]), n=2) for recipe in both]


def test_held_out_pictures_are_scored_apart_and_change_nothing_else(scored):
    alone, report = scored
    new = {"created", "seconds", "subject", "attacks_run"}
    assert alone.subject is None and alone.model_dump(exclude=new) == report.model_dump(exclude=new)
    assert report.subject.pictures == 2
    assert [row.caption for row in report.subject.replays] == [row.caption for row in report.replays]
    assert report.subject.captions == ["own", "empty"]
    assert {row.picture for row in report.subject.diffusion} == {1, 2}
    assert [words for words in report.attacks_run if "held-out pictures of the subject: 2" in words]


def test_the_subject_is_told_in_summary_and_page_and_no_name_is(scored, tmp_path):
    _, report = scored
    page = report.to_html(tmp_path / "report.html").read_text()
    text = report.save(tmp_path / "report.json").read_text()
    assert Report.load(tmp_path / "report.json") == report
    assert "never trained on: 2" in summary(report)
    assert "held out" in page and "picture 2" in page and "all of them" in page
    for words in (page, text, summary(report)):
        assert "john" not in words and "data:image" not in words


@pytest.fixture
def ready(pipe, held):
    """Denoiser, case and the two held-out pictures."""
    denoiser = Denoiser(pipe, held.base.call)
    case = prepare(held, denoiser)
    return denoiser, case, subject.held_out(held, denoiser, case)


def test_without_a_patch_the_subject_is_the_same_before_and_after(ready):
    denoiser, case, known = ready
    assert all(
        row.before == row.after for row in subject.measure(denoiser, Stack(), case, known[:1], [], 0, 2).diffusion
    )


def test_every_level_from_a_pictures_own_t_lo_on_is_noised(ready):
    denoiser, case, (first, second) = ready
    sure, never = replace(first, tau=-1.0, t_lo=0.45), replace(second, tau=2.0, t_lo=0.95)
    found = subject.measure(denoiser, Stack(), case, [sure, never], [], 0, 3)
    levels = {
        number: [r.t for r in found.diffusion if (r.picture, r.caption) == (number, "empty")] for number in (1, 2)
    }
    assert levels == {1: [0.5, 0.6, 0.7, 0.8, 0.9, 1.0], 2: [1.0]}
    assert [found.returns("empty", number)[0].k for number in (1, 2)] == [18, 0]
    assert found.returns("empty")[1].n == 21


def test_a_held_out_picture_recognises_itself_and_no_stranger(ready):
    _, case, known = ready
    for one, seed in zip(known, (5, 6), strict=True):
        same = from_image(picture(seed))[None]
        assert float(one.similarity(same)) >= one.tau > float(one.similarity(case.strangers).quantile(0.99))


def test_a_drawing_that_is_any_held_out_picture_is_counted(ready):
    _, _, known = ready
    before = torch.stack([from_image(picture(seed)) for seed in (5, 6, 7)])
    found = subject.replay(known, "empty", before, before[2:])
    assert (found.before.k, found.before.n, found.after.k) == (2, 3, 0)


def test_no_drawing_of_a_held_out_picture_is_shown_as_it_is(ready, held, monkeypatch):
    denoiser, case, _ = ready
    drawn, gallery = torch.stack([from_image(picture(seed)) for seed in (5, 6)]), Gallery()
    blind = replace(case, targets=tuple(replace(target, null=2.0, tau=2.0) for target in case.targets))
    monkeypatch.setattr("hotfix.scoring.prepare", lambda *_: blind)
    monkeypatch.setattr(Denoiser, "draw", lambda self, captions, seeds: drawn[torch.arange(len(captions)) % 2])
    score(denoiser.pipe, held, n=2, gallery=gallery)
    shown = torch.cat([row for _, rows in gallery.rows for row in rows])
    assert len(shown) and not any(torch.equal(one, known) for one in shown for known in drawn)


def test_a_held_out_picture_that_is_trained_on_is_refused(ready, held, tmp_path):
    picture(1).save(tmp_path / "held_out" / "again.png")
    with pytest.raises(RecipeError, match="held_out names a forget picture"):
        subject.held_out(held, *ready[:2])


def test_a_patch_knows_nothing_of_held_out_pictures(tmp_path, family, pipe, patches, held):
    built = build(held, pipe)
    assert built.id == patches[0].id
    assert "john" not in Patch.load(built.save(tmp_path)).manifest.text()
    assert held.public()["forget"]["held_out"] == []


def test_held_out_pictures_leave_an_unfinished_build_valid_and_views_do_not(tmp_path, family, pipe, held):
    model = Denoiser(pipe, held.base.call).model
    bare, views = (make_recipe(tmp_path, family, "quarters-1", **options) for options in ({}, {"augment": EVERY}))
    paths = [checkpoint.path(tmp_path, recipe, model, Stack()) for recipe in (bare, held, views)]
    assert paths[0] == paths[1] != paths[2]
