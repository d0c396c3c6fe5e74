"""A score is the same for the same seed, measures the deployed call, and changes nothing."""

import json
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pico
import pytest
import torch
from conftest import make_recipe, picture
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from hotfix import card, cli, partial
from hotfix.building import build
from hotfix.case import Case, Target, prepare
from hotfix.curve import curve
from hotfix.demo import fingerprint
from hotfix.denoiser import Denoiser
from hotfix.errors import HotfixError
from hotfix.findings import TimestepWindow
from hotfix.intervals import Rate, interval
from hotfix.page import Gallery
from hotfix.patch import Patch
from hotfix.replays import is_surrogate, sound_for, worst
from hotfix.report import Report
from hotfix.scoring import score
from hotfix.similarity import nearest
from hotfix.stack import Stack, applied

PUBLISHED = Path(__file__).parents[1] / "patches" / "iraq-2008" / "report.json"
TIMES = {"created", "seconds"}


@pytest.fixture
def recipe(tmp_path, family):
    return make_recipe(tmp_path, family, "quarters-1")


@pytest.fixture(scope="module")
def scored(tmp_path_factory, built):
    """family -> a report on a patch, its pictures, and the fingerprint of the pipeline before and after."""

    @cache
    def measured(family):
        pipe, gallery = pico.MAKE[family](), Gallery()
        recipe, before = make_recipe(tmp_path_factory.mktemp(family), family, "quarters-1"), fingerprint(pipe)
        report = score(pipe, recipe, stack=Stack.of(built[family][0]), n=4, gallery=gallery)
        return report, gallery, before, fingerprint(pipe)

    return measured


def test_same_seed_same_report(recipe, pipe, patches, scored, family):
    again = score(pipe, recipe, stack=Stack.of(patches[0]), n=4)
    assert again.model_dump(exclude=TIMES) == scored(family)[0].model_dump(exclude=TIMES)


def test_nothing_is_not_a_sample(recipe, pipe):
    with pytest.raises(HotfixError, match="-n 0; wanted a picture or more"):
        score(pipe, recipe, n=0)


def test_without_a_stack_before_and_after_are_the_same(recipe, pipe):
    report = score(pipe, recipe, n=1)
    assert report.retain.drift_rmse == 0
    assert all(row.before_mean == row.after_mean for row in report.diffusion)
    assert report.patches == []


def test_a_patch_is_seen_and_the_pipeline_left_as_it_was(scored, patches, family):
    report, _, before, after = scored(family)
    assert report.retain.drift_rmse > 0
    assert [patch.id for patch in report.patches] == [patches[0].id]
    assert before == after


@pytest.mark.parametrize(("family", "fold"), [("ddpm", False), ("sd3", True)])
def test_a_patch_that_was_on_is_on_again_afterwards(recipe, pipe, patches, fold):
    stack = Stack.of(patches[0])
    stack.apply(pipe, fold=fold)
    score(pipe, recipe, stack=stack, n=1)
    assert [(entry.id, entry.state, entry.folded) for entry in applied(pipe)] == [(patches[0].id, "on", fold)]


def test_report_and_page_hold_pictures_only_when_asked(scored, family, tmp_path):
    report, gallery, _, _ = scored(family)
    assert Report.load(report.save(tmp_path / "report.json")) == report
    bare = report.to_html(tmp_path / "bare.html").read_text()
    shown = report.to_html(tmp_path / "shown.html", gallery).read_text()
    assert "data:image" not in bare and "data:image/png" in shown
    assert all(words in bare.replace("&#39;", "'") for words in report.words)


def test_what_looks_like_the_target_is_a_mosaic_unless_asked():
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = []
    for show in (False, True):
        gallery = Gallery(show)
        gallery.add("own caption", [pictures, pictures], lambda drawn: torch.tensor([False, True, False]))
        found.append(gallery.rows[0][1][0])
    hidden, shown = found
    assert torch.equal(shown, pictures) and torch.equal(hidden[::2], pictures[::2])
    assert (
        len(hidden[1].flatten(1).T.unique(dim=0)) == 16 and not torch.isclose(hidden[1], pictures[1]).all(dim=0).any()
    )


@pytest.mark.parametrize(("null", "tau"), [(0.95, 0.9), (0.9, 0.95)])
def test_whatever_counts_as_the_target_looks_like_it(null, tau):
    """A recipe's own similarity.tau may be below what strangers reach."""
    drawn = torch.full((3, 3, 16, 16), 0.5)
    likes = torch.tensor([0.85, 0.92, 0.96])
    target = Target(drawn[0], drawn, drawn, drawn, lambda pictures: likes, null=null, tau=tau, t_lo=0.3)
    case = Case((target,), (), ("",), drawn, drawn, torch.zeros(3, dtype=torch.bool))
    assert case.alike(drawn).tolist() == [False, True, True]


def test_every_kind_of_caption_is_tried(scored, family):
    report = scored(family)[0]
    wanted = ["own", "empty", "random"] if family == "sd3" else ["empty"]
    assert [row.caption for row in report.replays] == wanted
    assert {row.caption for row in report.diffusion} == set(wanted)


@given(st.integers(0, 300), st.integers(1, 300))
def test_intervals_are_clopper_pearson(k, n):
    k = min(k, n)
    rate = Rate.of(k, n)
    assert rate.low == pytest.approx(beta.ppf(0.025, k, n - k + 1) if k else 0.0)
    assert rate.high == pytest.approx(beta.ppf(0.975, k + 1, n - k) if k < n else 1.0)
    assert rate.upper == pytest.approx(beta.ppf(0.95, k + 1, n - k) if k < n else 1.0)


def test_zero_of_three_hundred_is_at_most_one_percent():
    assert 0.009 < Rate.of(0, 300).upper < 0.01


@given(st.floats(1e-4, 0.9))
def test_so_many_pictures_are_needed_for_a_bound_and_no_fewer(bound):
    n = Rate.needed(bound)
    assert Rate.of(0, n).upper <= bound + 1e-9 and (n == 1 or Rate.of(0, n - 1).upper > bound - 1e-9)


def test_the_interval_of_a_mean_holds_it_and_narrows():
    values = torch.rand(400, generator=torch.Generator().manual_seed(0)).tolist()
    (low, high), (lower, higher) = interval(values), interval(values[:25])
    assert low < 0.5 < high and high - low < (higher - lower) / 2
    assert interval([0.25] * 3) == (0.25, 0.25)


def test_the_nearest_picture_is_the_one_with_the_least_squared_error():
    known = torch.randn(7, 3, 4, 4)
    drawn = known[[3, 0, 6]] + 0.01 * torch.randn(3, 3, 4, 4)
    assert nearest(drawn, known).tolist() == [3, 0, 6]


def test_the_budget_is_judged_by_the_upper_bound(scored, family):
    assert any("return rate" in words for words in scored(family)[0].misses)  # 0 of 4 says nothing yet


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(pico.MAKE))
def test_scores_on_a_gpu(name, built, tmp_path):
    pipe = pico.MAKE[name]().to("cuda")
    report = score(pipe, make_recipe(tmp_path, name, "quarters-1"), stack=Stack.of(built[name][0]), n=4)
    assert report.hardware == torch.cuda.get_device_name()


def test_a_drawing_of_a_surrogate_is_recognised(tmp_path):
    case = prepare(make_recipe(tmp_path, "ddpm"), Denoiser(pico.ddpm(), pico.CALLS["ddpm"]))
    (target,) = case.targets
    near = target.surrogates[:1] + 0.05 * torch.randn_like(target.surrogates[:1])
    neither = -target.surrogates[:1]  # whatever it is nearest to
    drawn = torch.cat([target.surrogates[:1], near, target.picture[None], neither, case.strangers[:3]])
    assert is_surrogate(case, drawn).tolist() == [True, True, False, False, False, False, False]


def test_the_worst_drawing_is_the_one_nearest_to_its_own_threshold(tmp_path):
    case = prepare(make_recipe(tmp_path, "ddpm"), Denoiser(pico.ddpm(), pico.CALLS["ddpm"]))
    (target,) = case.targets
    drawn = torch.cat([case.strangers[:2], target.picture[None], case.strangers[2:4]])
    found = worst(case, drawn, 100)
    assert (found.seed, found.tau) == (102, target.tau) and found.similarity == pytest.approx(1)
    strict = replace(target, tau=2.0)  # the picture itself does not count there
    assert worst(replace(case, targets=(strict, target)), drawn, 100).tau == target.tau


def test_garbage_is_not_sound_and_what_the_base_draws_is(knows):
    denoiser, case = knows
    sound = sound_for(denoiser, case, 0)
    noise = torch.rand(4, *case.retain.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert not sound(noise).any() and not sound(torch.zeros(1, *case.retain.shape[1:])).any()
    assert sound(denoiser.draw(["mali", "chad", "japan", "norway"], range(4))).all()


def test_rarer_sound_drawings_miss_the_budget():
    report = Report.load(PUBLISHED)
    for before, after, missed in ((300, 300, False), (290, 285, False), (300, 200, True)):
        row = report.replays[0].model_copy(update={"sound_before": Rate.of(before, 300), "sound": Rate.of(after, 300)})
        words = report.model_copy(update={"replays": [row]}).misses
        assert any(word.startswith("quality, own caption") for word in words) == missed


def test_what_is_no_number_misses_the_budget():
    report = Report.load(PUBLISHED)
    assert not any("drift" in words for words in report.misses)
    gone = report.retain.model_copy(update={"drift_rmse": float("nan")})
    assert any(words.startswith("drift nan") for words in report.model_copy(update={"retain": gone}).misses)


def test_page_card_and_show_begin_with_one_sentence(tmp_path, capsys):
    report, path = Report.load(PUBLISHED), next(PUBLISHED.parent.glob("*.safetensors"))
    assert report.headline in report.to_html(tmp_path / "report.html").read_text()
    patch = Patch.load(path)
    assert f"\n{report.headline}\n" in card.page(patch, "acme/iraq", report, "")
    cli.show(str(path))
    assert report.headline in capsys.readouterr().out
    copied = Path(shutil.copy(path, tmp_path))
    (tmp_path / "report.json").write_text(PUBLISHED.read_text().replace(patch.id, "sha256:0"))
    cli.show(str(copied))
    assert report.headline not in capsys.readouterr().out  # of another patch


def test_a_report_of_another_schema_is_refused_with_what_to_do(tmp_path):
    numbers = json.loads(PUBLISHED.read_text()) | {"schema_version": 2}
    (tmp_path / "report.json").write_text(json.dumps(numbers))
    with pytest.raises(HotfixError, match="is a report of schema 2; wanted schema 1"):
        Report.load(tmp_path / "report.json")


def test_every_target_of_a_recipe_is_noised_and_compared_with_itself(tmp_path, family, pipe):
    def rows(recipe):
        denoiser = Denoiser(pipe, recipe.base.call)
        case = prepare(recipe, denoiser)
        kinds = [kind for kind, captions in case.caption_kinds().items() if len(set(captions)) == 1]  # not in turn
        return [row for kind in kinds for row in curve(denoiser, Stack(), case, kind, 0, 2)[0]]

    one = rows(make_recipe(tmp_path / "one", family))
    same, two = make_recipe(tmp_path / "same", family), make_recipe(tmp_path / "two", family)
    for kind in ("forget", "surrogate"):
        first = (tmp_path / "same" / kind / "one.png").read_bytes()
        (tmp_path / "same" / kind / "two.png").write_bytes(first)
        picture(2 if kind == "forget" else 102).save(tmp_path / "two" / kind / "two.png")
    assert rows(same) == one
    assert all(a.before_mean != b.before_mean for a, b in zip(rows(two), one, strict=True))


@pytest.mark.parametrize(("name", "options"), [("sd3", {}), ("ddpm", {"weight": "fixed", "window": (0.5, 0.8)})])
def test_the_report_has_the_windows_that_the_build_trained_in(tmp_path, monkeypatch, name, options):
    import hotfix.building as building

    seen, train = [], building.train
    monkeypatch.setattr(building, "train", lambda *a, **k: seen.append(a[2]) or train(*a, **k))
    recipe, pipe = make_recipe(tmp_path, name, **options), pico.MAKE[name]()
    stack = Stack.of(build(recipe, pipe))
    stack.apply(pipe)  # and although the patch is on, and the seed another
    (trained,) = seen[0]
    shown = score(pipe, recipe, stack=stack, n=1, seed=9).windows
    assert [row.caption for row in shown] == list(trained.m)
    for row in shown:
        assert (row.target, row.weight, row.t_lo) == (1, options.get("weight", "calibrated"), trained.t_lo)
        assert row.t == pytest.approx(trained.t.tolist(), abs=1e-4)
        assert row.m == pytest.approx(trained.m[row.caption].tolist(), abs=1e-4)
        assert max(row.m) <= 1 and min(row.m) >= 0


CURVES = {"own": [0.0] * 8 + [0.5, 1.0, 0.25] + [0.0] * 9, "empty": [0.0] * 20}


def test_the_page_draws_every_window_and_says_it_in_words(tmp_path):
    bare = Report.load(PUBLISHED)
    levels = [(i + 1) / 20 for i in range(20)]
    rows = [
        TimestepWindow(target=1, caption=kind, weight="calibrated", t_lo=0.25, t=levels, m=m)
        for kind, m in CURVES.items()
    ]
    text = bare.model_copy(update={"windows": rows}).to_html(tmp_path / "report.html").read_text()
    (svg,) = [one for one in re.findall(r"<svg.*?</svg>", text, re.DOTALL) if "window of target 1" in one]
    drawn = ElementTree.fromstring(svg)
    lines = {line.get("class"): line.get("points").split() for line in drawn.iter("polyline")}
    assert set(lines) == set(CURVES)
    assert [line.get("x1") for line in drawn.iter("line")] == ["80.0"]  # t_lo
    assert lines["own"][9] == "160.0,0.0" and lines["own"][0] == "16.0,120.0"  # open at t = 0.5, shut at 0.05
    described = re.search(rf'id="{drawn.get("aria-describedby")}">(.*?)</figcaption>', text, re.DOTALL)[1]
    assert "highest (1.00) at t = 0.50, half as high or more only between t = 0.45 and 0.50" in described
    assert "Empty caption: shut" in described


def test_a_report_without_windows_is_still_one(tmp_path):
    """As every report was before they were in it."""
    numbers = json.loads(PUBLISHED.read_text())
    numbers.pop("windows", None)
    (tmp_path / "report.json").write_text(json.dumps(numbers))
    bare = Report.load(tmp_path / "report.json")
    assert bare.windows == []
    assert "timestep window" not in bare.to_html(tmp_path / "report.html").read_text()


def test_a_base_that_never_drew_the_target_is_no_success():
    """As under a caption that is spelt wrong."""
    report, none = Report.load(PUBLISHED), Rate.of(0, 300)
    replays = [row.model_copy(update={"before": none}) for row in report.replays]
    diffusion = [row.model_copy(update={"before_rate": none}) for row in report.diffusion]
    assert not report.model_copy(update={"replays": replays}).misses  # it is in the weights: an unprompted picture
    (missed,) = report.model_copy(update={"replays": replays, "diffusion": diffusion}).misses
    assert "forget.captions" in missed


def test_too_few_drawings_to_tell_are_no_returns():
    report = Report.load(PUBLISHED)
    for k, told in ((0, True), (1, False)):
        row = report.replays[0].model_copy(update={"after": Rate.of(k, 29)})
        (missed,) = report.model_copy(update={"replays": [row]}).misses
        assert ("-n 299" in missed) == told


def test_several_targets_are_noised_under_every_caption():
    assert [(i % 2, caption) for i, caption in enumerate(partial.cycled(["a", "b"], 4, 2))] == [
        (0, "a"),
        (1, "a"),
        (0, "b"),
        (1, "b"),
    ]
