"""The benchmark against the rivals: its targets, its compute, its choice of settings, its numbers, its files."""

import json
import math
import pkgutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pico
import pytest
import torch
from conftest import make_recipe, picture

from benchmarks.flags import TWINS, is_picture, real_flags, tiles
from benchmarks.forgetting import best, compute, distance, plot, table, targets, training, work
from benchmarks.forgetting.bench import Bench, chosen
from benchmarks.forgetting.best import Row
from benchmarks.forgetting.drawings import drawn
from benchmarks.forgetting.measure import measured, rounded
from benchmarks.forgetting.settings import (
    ABLATION,
    DEFAULT,
    HOTFIX,
    PARTS,
    PUBLISHED,
    RIVALS,
    ablations,
    middle,
    settings,
)
from benchmarks.forgetting.subject import Model, Sizes, Subject
from benchmarks.forgetting.targets import ROOT, Base, Target
from benchmarks.forgetting.training import SPARED, asked, with_changes
from benchmarks.forgetting.units import Unit, ablation_units, best_units, quick_units, units
from benchmarks.rivals.ways import opened
from hotfix.case import prepare
from hotfix.demo import fingerprint
from hotfix.denoiser import Denoiser
from hotfix.errors import HotfixError
from hotfix.similarity import nearest

SMALL = Sizes(n=2, noises=2, kept=2, steps=2)
BASES, TARGETS = targets.read({})


# What is forgotten


def test_the_list_is_the_one_that_was_promised():
    names = {base: [row.name for row in TARGETS if row.base == base] for base in BASES}
    assert {base: len(set(found)) for base, found in names.items()} == {"flags": 10, "emoji": 10, "faces": 4}
    assert sum(row.tune for row in TARGETS) == 5
    assert {row.base for row in TARGETS if row.tune} == set(BASES)


@pytest.mark.parametrize("row", TARGETS, ids=lambda row: row.name)
def test_every_target_says_once_which_picture_it_is(row):
    assert sum([bool(row.files), bool(row.real), row.seed is not None, row.picture is not None]) == 1
    if row.files:
        assert all(list(ROOT.glob(f"{row.files}/{kind}/*.png")) for kind in ("forget", "surrogate"))


def test_targets_of_a_data_set_are_far_from_everything_else_in_it():
    for base, (names, pictures), limit in (("flags", real_flags(), 0.31), ("emoji", tiles("emoji"), 0.23)):
        for row in (row for row in TARGETS if row.base == base and row.real):
            i = names.index(row.real)
            others = torch.cat([pictures[:i], pictures[i + 1 :]])
            assert distance.to_nearest(pictures[i : i + 1], others) >= limit
            assert all(row.real not in twins for twins in TWINS.values())


def test_faces_need_a_folder_and_a_scorer(tmp_path):
    assert "--faces" in targets.missing(BASES["faces"])
    given, _ = targets.read({"faces": str(tmp_path)})
    assert "--face-scorer" in targets.missing(given["faces"])
    given, _ = targets.read({"faces": str(tmp_path)}, tmp_path / "scorer.pt")
    assert not targets.missing(given["faces"])
    assert not targets.missing(BASES["flags"])


# By which methods


@pytest.mark.parametrize("method", RIVALS)
def test_settings_of_a_rival(method):
    rival, found = RIVALS[method], settings(method)
    assert (PUBLISHED in found) == (rival.STEPS is not None and rival.LR is not None)
    swept = [one for label, one in found.items() if label != PUBLISHED]
    modes = 2 if rival.MODE == "full" else 1
    assert len(swept) == 3 * modes * len(rival.SWEEP)
    assert not any(one.published for one in swept)
    assert middle(method) in found
    assert all("/" not in label for label in found)


def test_an_ablation_changes_one_thing_and_gives_a_recipe(tmp_path):
    recipe = make_recipe(tmp_path, "ddpm")
    plain = recipe.model_dump()
    for changes in ablations(TARGETS[0]).values():
        changed = with_changes(recipe, changes).model_dump()
        others = {key for k in ("train", "surrogate") for key in plain[k] if changed[k][key] != plain[k][key]}
        assert len(others - {"images"}) == 1  # which go with the kind of surrogate that reads them
    assert "surrogate=nearest" not in ablations(next(row for row in TARGETS if row.surrogate == "nearest"))


def test_units_cover_all_and_shards_share_them_out():
    planned = list(units(TARGETS, 3))
    assert len(planned) == len({unit.id for unit in planned})
    assert sum(unit.method == HOTFIX for unit in planned) == 3 * len(TARGETS)
    shards = [chosen(planned, [], (i, 4)) for i in (1, 2, 3, 4)]
    assert sorted(unit.id for shard in shards for unit in shard) == sorted(unit.id for unit in planned)
    assert chosen(planned, ["flags/*/siss/published/0"], (1, 1)) == [
        Unit("flags", row.name, 0, "siss", PUBLISHED)
        for row in sorted(TARGETS, key=lambda row: row.name)
        if row.base == "flags"
    ]
    assert {unit.method for unit in quick_units()} == {HOTFIX, *RIVALS}
    assert {u.target for u in best_units(TARGETS, 1, {("faces", "siss"): "x"})} == {f"face-{i}" for i in range(1, 5)}
    assert len(list(ablation_units(TARGETS[:1], 1))) == 1 + len(ablations(TARGETS[0])) + len(PARTS)


def test_hotfix_comes_before_what_it_pays_for():
    planned = chosen(list(units(TARGETS, 1)), ["emoji/jack*"], (1, 1))
    assert planned[0].method == HOTFIX
    assert {u.waits_for for u in planned} == {None, planned[0]}


# At which compute


@pytest.mark.parametrize("method", RIVALS)
@pytest.mark.parametrize("family", pico.MAKE)
def test_a_step_costs_what_the_budget_counts(method, family):
    few = {"duo": {"pairs": 1}, "selective_amnesia": {"samples": 1}}.get(method, {})
    denoiser = Denoiser(pico.MAKE[family](), pico.CALLS[family])
    x = torch.randn(3, *denoiser.latent_shape)
    facts = {"x_f": x[:1], "x_s": x[1:2], "x_r": x[2:], "forget": ["a"], "retain": ["b"]}
    costs = []
    for steps in (1, 2):
        with opened(denoiser, "lora", seed=0, rank=1, **facts) as problem, compute.counted(denoiser.model) as count:
            RIVALS[method].train(problem, steps=steps, lr=1e-3, rows=2, **few)
            assert (count.forward, count.backward) == (problem.count.forward, problem.count.backward)
            costs.append(count.cost)
    one = compute.cost_of_step(method, 2, denoiser.captioned)
    assert costs[1] - costs[0] == one
    if not few:
        assert costs[0] - one == compute.cost_before_steps(method, 2)


def test_a_budget_is_not_overspent():
    for method in RIVALS:
        steps = compute.steps_within(30_000, method, 8, captioned=True)
        spent = compute.cost_before_steps(method, 8) + steps * compute.cost_of_step(method, 8, captioned=True)
        assert 30_000 - compute.cost_of_step(method, 8, captioned=True) < spent <= 30_000
    assert compute.steps_within(1, "duo", 8, captioned=False) == 1


def test_rivals_are_asked_under_hotfixs_kinds_of_captions(tmp_path):
    case = prepare(make_recipe(tmp_path, "sd3"), Denoiser(pico.sd3(), pico.CALLS["sd3"]))
    swept = settings("siss")[middle("siss")]
    captions = asked(case, "siss", swept)
    assert {captions.count(caption) for caption in ("a", "")} == {32}
    assert len(captions) == 96
    assert all(set(asked(case, method, swept)) == {"a", ""} for method in SPARED)
    assert asked(case, "siss", settings("siss")[PUBLISHED]) == ["a"]


# How it is measured


def a_subject(family, folder):
    denoiser = Denoiser(pico.MAKE[family](), pico.CALLS[family])
    recipe = make_recipe(folder, family, steps=2)
    target = Target(family, "quarters", tuple(recipe.forget.captions), seed=7 if family == "ddpm" else None)
    model = Model(Base(family, pico.CALLS[family]), denoiser)
    return Subject(model, target, 0, recipe, prepare(recipe, denoiser))


def test_nothing_changed_measures_nothing(family, tmp_path):
    subject = a_subject(family, tmp_path)
    before = drawn(subject, SMALL, subject.model.remembered)
    numbers = measured(subject, before, before, before)
    assert numbers["drift"] == numbers["gold"] == 0
    assert numbers["ssim_lost"] == pytest.approx(0, abs=1e-5)
    for name in ("suppressed", "strictly", "returns", "excess", "over", "worst", "kid", "kept"):
        assert numbers[name] == numbers[f"base_{name}"] == numbers.get(f"gold_{name}")
    assert {row["t"] for row in numbers["partial"]} == set(subject.levels())
    assert set(numbers["replay"]) == set(subject.replays(1))


def test_a_model_that_draws_the_target_is_seen_and_so_is_one_in_pieces(tmp_path):
    subject = a_subject("ddpm", tmp_path)
    before = drawn(subject, SMALL, subject.model.remembered)
    target = subject.case.targets[0].picture
    copies = replace(before, partial={key: target.expand_as(x) for key, x in before.partial.items()})
    assert measured(subject, before, copies)["excess"] == pytest.approx(1 - subject.case.targets[0].null, abs=1e-5)
    assert not measured(subject, before, copies)["suppressed"]
    replayed = replace(before, replays={kind: target.expand_as(x) for kind, x in before.replays.items()})
    assert measured(subject, before, replayed)["returns"] == sum(map(len, before.replays.values()))
    torn = drawn(subject, SMALL, lambda captions, seeds: torch.full((len(seeds), 3, pico.SIDE, pico.SIDE), math.nan))
    assert torn.broken == SMALL.n + 1  # the replay, and its own seed
    assert all(bool(x.isfinite().all()) for x in torn.replays.values())


def test_an_exact_model_without_the_target_draws_the_nearest_at_low_noise_and_anything_from_pure_noise(
    tmp_path, monkeypatch
):
    subject = a_subject("ddpm", tmp_path)
    target, others = subject.case.targets[0], subject.others
    assert not bool(is_picture(others, target.picture).any())
    near = others[nearest(target.picture[None], others)]
    assert subject.left_out(0.05, 3) == pytest.approx(float(target.similarity(near)))
    monkeypatch.setattr(Denoiser, "schedule", lambda self, t: (0 * t[:, None, None, None], t[:, None, None, None]))
    usual = float(target.similarity(others).quantile(0.95, interpolation="higher"))
    assert subject.left_out(1.0, 8) == pytest.approx(usual)  # without any signal all are as likely


def test_noise_and_grey_are_farther_from_real_pictures_than_other_real_pictures():
    _, pictures = real_flags()
    some, others = pictures[::2], pictures[1::2]
    noise = torch.rand(some.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    true = distance.kid(some, others)
    assert true == distance.kid(some, others)
    for garbage in (noise, torch.zeros_like(some), some[:1].expand_as(some)):
        assert distance.kid(garbage, others) > 3 * abs(true)
    assert distance.to_nearest(noise, others) > distance.to_nearest(some, others)


@pytest.mark.parametrize("mode", ["hotfix", "lora", "full"])
def test_a_unit_changes_the_model_measures_it_and_leaves_no_trace(family, mode, tmp_path):
    subject = a_subject(family, tmp_path)
    original = fingerprint(subject.model.denoiser.pipe)
    before = drawn(subject, SMALL, subject.model.remembered)
    label = next((x for x in settings("munba") if x.startswith(mode)), DEFAULT)
    unit = Unit(family, "quarters", 0, HOTFIX if mode == "hotfix" else "munba", label)
    one = work.run(unit, subject, before, SMALL, budget=100)["numbers"]
    assert fingerprint(subject.model.denoiser.pipe) == original
    assert one["steps"] == 2
    assert one["cost"] == one["forward"] + 2 * one["backward"] > 0
    assert one["drift"] > 0
    if mode == "lora":
        two = work.run(unit, subject, before, SMALL, budget=100)["numbers"]
        assert all(two[key] == value for key, value in one.items() if key not in ("seconds", "peak_bytes"))


@pytest.mark.parametrize("label", PARTS)
def test_a_part_of_the_loop_is_off_for_one_build(label, tmp_path, monkeypatch):
    name, instead = PARTS[label]
    subject, usual, seen = a_subject("ddpm", tmp_path), pkgutil.resolve_name(name), []

    def build(*args, **options):
        seen.append(pkgutil.resolve_name(name))
        return training_build(*args, **options)

    training_build = training.build
    monkeypatch.setattr(training, "build", build)
    with training.changed(Unit("ddpm", "quarters", 0, ABLATION, label), subject, SMALL, None) as done:
        assert done.steps == 2
    assert seen == [instead] != [usual]
    assert pkgutil.resolve_name(name) is usual


def test_files_are_found_again_and_other_sizes_are_refused(tmp_path):
    unit = Unit("emoji", "rainbow", 0, "siss", middle("siss"))
    assert work.load(tmp_path, unit, SMALL) is None
    work.save(tmp_path, unit, work.about(unit, SMALL) | {"numbers": {"cost": 5}})
    work.save(tmp_path, unit.waits_for, work.about(unit.waits_for, SMALL) | {"numbers": {"cost": 7}})
    assert work.load(tmp_path, unit, SMALL)["numbers"] == {"cost": 5}
    assert work.budget_for(unit, tmp_path, SMALL) == 7
    assert [row.setting for row in best.read(tmp_path)] == [DEFAULT, middle("siss")]
    with pytest.raises(HotfixError, match="noises 2"):
        work.load(tmp_path, unit, replace(SMALL, noises=3))


def test_rounding_reaches_every_number():
    assert rounded({"a": [{"b": 1 / 3}], "k": 1, "yes": True}) == {"a": [{"b": 0.333333}], "k": 1, "yes": True}


# The table


def a_row(method, setting, drift, suppressed=True, target="one", seed=0, base="emoji", **more):
    numbers = {"drift": drift, "suppressed": suppressed, "returns": 0 if suppressed else 3, "replayed": 10}
    numbers |= dict.fromkeys(("excess", "over"), -0.1 if suppressed else 0.2)
    numbers |= {"worst": 0.0, "nearest_real": 0.1, "kid": 0.01, "ssim_lost": 0.2}
    numbers |= {f"base_{name}": value for name, value in numbers.items()} | {"kept": 0.9, "base_kept": 1.0, "cost": 100}
    return Row(base, target, seed, method, setting, numbers | more)


def test_the_best_setting_drifts_least_of_those_that_forget_as_much():
    rows = [
        a_row(HOTFIX, DEFAULT, 0.02),
        a_row("siss", "timid", 0.001, suppressed=False),
        a_row("siss", "right", 0.03),
        a_row("siss", "brutal", 0.3),
        a_row("duo", "nothing", 0.0, suppressed=False),
        a_row("duo", "more", 0.1, suppressed=False, over=0.1),
    ]
    assert best.best_settings(rows) == {("emoji", "siss"): "right", ("emoji", "duo"): "more"}


def test_settings_are_compared_on_the_subjects_that_all_of_them_saw():
    rows = [a_row(HOTFIX, DEFAULT, 0.02, target=name) for name in ("one", "two")]
    rows += [a_row("siss", "narrow", 0.01), a_row("siss", "wide", 0.02)]
    rows += [a_row("siss", "wide", 0.0, target="two")]
    assert best.best_settings(rows)["emoji", "siss"] == "narrow"


def test_interval_is_over_targets_not_over_seeds():
    values = [(("emoji", "one"), 1.0), (("emoji", "one"), 3.0), (("emoji", "two"), 4.0)]
    middle_, half = table.interval(values)
    assert middle_ == 3.0
    assert half == pytest.approx(12.706, abs=1e-2)  # t for one degree of freedom; the two means are 2 and 4
    assert table.interval(values[:2]) == (2.0, None)


def several():
    rows = [a_row(HOTFIX, DEFAULT, 0.02, target=t, base=b) for t in ("one", "two") for b in ("emoji", "flags")]
    rows += [a_row("siss", PUBLISHED, 0.05, target=t, suppressed=t == "one") for t in ("one", "two")]
    return [*rows, a_row("ablation", "ema=0.0", 0.04)]


def test_the_same_files_give_the_same_table_and_plot():
    rows, bases = several(), ["emoji", "flags"]
    shown = table.methods(rows)
    text = table.markdown(shown, bases)
    assert text == table.markdown(table.methods(rows[::-1]), bases)
    lines = text.splitlines()
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    (siss,) = [line for line in lines if line.startswith("| emoji | siss")]
    assert "1 of 2" in siss and "+0.0300" in siss
    picture = plot.svg(rows, shown, bases)
    assert picture == plot.svg(rows[::-1], table.methods(rows[::-1]), bases)
    assert ElementTree.fromstring(picture).tag.endswith("svg")


def test_ablations_are_set_against_hotfix_where_they_were_tried():
    shown = table.changes(several())
    assert [row.target for row in shown[HOTFIX]] == ["one"]
    assert "+0.0200" in table.markdown(shown, ["emoji"])


def test_the_table_is_written_from_files(tmp_path, monkeypatch):
    import benchmarks.forget_table as entry

    for row in several():
        unit = Unit(row.base, row.target, row.seed, row.method, row.setting)
        work.save(tmp_path, unit, work.about(unit, SMALL) | {"numbers": dict(row.numbers)})
    unit = Unit("flags", "two", 0, "siss", PUBLISHED)
    work.save(tmp_path, unit, work.about(unit, SMALL) | {"failed": "for a reason"})
    monkeypatch.setattr("sys.argv", ["forget_table.py", str(tmp_path)])
    entry.main()
    assert "flags/two/siss/published/0: for a reason" in (tmp_path / "forget.md").read_text()
    assert (tmp_path / "ablations.md").is_file()
    assert json.loads((tmp_path / f"{unit.id}.json").read_text())["failed"]


# All of it, on four faces of a base in a folder


class Colours(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x - 127.5, 4).flatten(1)


def test_faces_are_measured_with_the_scorer_against_gold_and_once(tmp_path):
    base_folder, scorer, out = tmp_path / "faces", tmp_path / "scorer.pt", tmp_path / "out"
    pico.ddpm().save_pretrained(base_folder)
    (base_folder / "forget").mkdir()
    for i in range(4):
        picture(i).save(base_folder / "forget" / f"{i}.png")
    torch.jit.script(Colours()).save(str(scorer))
    given, rows = targets.read({"faces": str(base_folder)}, scorer)
    base = replace(given["faces"], call=pico.CALLS["ddpm"])
    row = next(row for row in rows if row.name == "face-2")
    unit = Unit("faces", "face-2", 0, "plain", middle("plain"))
    stamps = set()
    for _ in range(2):
        Bench(out, SMALL, "cpu", {"faces/face-2": str(base_folder)}).do(base, row, 0, [unit])
        first, second = (work.load(out, one, SMALL)["numbers"] for one in (unit.waits_for, unit))
        assert second["tau"] == 0.48
        assert second["budget"] == first["cost"]
        assert second["base_gold"] == 0 < second["gold"]
        stamps.add((out / f"{unit.id}.json").stat().st_mtime_ns)
    assert len(stamps) == 1
