"""Many recipes in one command: none lost, none built twice, none kept back by another."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
from tiny import make_project

from hotfix import batch, ledger
from hotfix.batch import Job
from hotfix.cli_build import build
from hotfix.errors import HotfixError, RecipeError
from hotfix.patch import Patch


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)  # a second build would have the id of the first
    return make_project(tmp_path, 3)


def lines():
    return [(one.verb, one.patches[0].name) for one in ledger.read(Path("hotfix.lock"))[0]]


def ids():
    return {path.name: Patch.load(path).id for path in Path("dist").glob("*.safetensors")}


def rows(capsys):
    return {row["recipe"]: row for row in json.loads(capsys.readouterr().out)}


def test_recipes_of_one_patch_are_refused_before_anything_starts(recipes):
    shutil.copy(recipes[0], recipes[0].with_name("again.toml"))
    with pytest.raises(RecipeError, match=r"r00/recipe\.toml and r00/again\.toml build the same patch, quarters-0 1"):
        build([*recipes, recipes[0].with_name("again.toml")])
    assert not Path("dist").exists() and not Path("hotfix.log.jsonl").exists()


def test_a_worker_stays_with_its_base_as_long_as_there_is_work_on_it():
    one, two = ("one", ""), ("two", "")
    waiting = [Job(Path(str(i)), base) for i, base in enumerate([one, two, one, two, two])]
    loaded, order = None, []
    while waiting:
        job = batch.take(waiting, loaded)
        loaded = job.base
        order.append(str(job.recipe))
    assert order == ["1", "3", "4", "0", "2"]


@pytest.mark.parametrize("key", ['dtype = "bfloat16"', "bits = 8", "offload = true"])
def test_a_base_that_is_loaded_otherwise_is_another_base_and_a_call_is_not(recipes, key):
    for path, change in ((recipes[1], key), (recipes[2], "call = { num_inference_steps = 9 }")):
        lines = path.read_text().splitlines()
        (at,) = (i for i, line in enumerate(lines) if line.startswith("pipeline ="))
        kept = [line for line in lines if not line.startswith(change.split()[0])]
        path.write_text("\n".join([*kept[: at + 1], change, *kept[at + 1 :]]))
    one, other, same = (job.base for job in batch.plan(recipes)[0])
    assert one != other and one == same


def test_what_fails_keeps_no_other_back_and_the_same_command_builds_the_rest(recipes, capsys):
    forget = recipes[1].with_name("forget.png")
    forget.rename("away.png")
    with pytest.raises(HotfixError, match=r"2 of 4 recipes could not be built"):
        build([*recipes, Path("nothing.toml")], n=0, json=True)
    found = rows(capsys)
    assert [row["state"] for row in found.values()] == ["built", "failed", "built", "failed"]
    assert "nothing matches 'forget.png'" in found["r01/recipe.toml"]["error"] and found["nothing.toml"]["hint"]
    before = ids()
    Path("away.png").rename(forget)
    build(recipes, n=0, json=True)
    assert [row["state"] for row in rows(capsys).values()] == ["found", "built", "found"]
    assert {name: ids()[name] for name in before} == before
    assert sorted(lines()) == [("built", f"quarters-{i}") for i in range(3)]


def test_a_patch_whose_line_is_missing_gets_it_once(recipes):
    """As after a power cut between the two."""
    build(recipes, n=0)
    Path("hotfix.log.jsonl").unlink()
    for _ in range(2):
        build(recipes, n=0)
    assert sorted(lines()) == [("built", f"quarters-{i}") for i in range(3)]
    assert all(one.facts == {"found": True} for one in ledger.read(Path("hotfix.lock"))[0])


@pytest.mark.parametrize("changed", ["recipe", "forget", "surrogate"])
def test_what_has_changed_is_built_again(recipes, changed):
    build(recipes, n=0)
    before = ids()
    old = Path("dist/quarters-0-1.0.0.safetensors").stat().st_mtime - 60
    if changed == "recipe":
        recipes[0].write_text(recipes[0].read_text().replace("steps = 1", "steps = 2"))
    else:
        picture = recipes[0].with_name(f"{changed}.png")
        shutil.copy(recipes[1].with_name(f"{changed}.png"), picture)
        if changed == "forget":
            os.utime(picture, (old, old))  # what was copied with its date is noticed all the same
    build(recipes, n=0)
    assert [name for name, id_ in before.items() if ids()[name] != id_] == ["quarters-0-1.0.0.safetensors"]


def test_what_was_built_is_only_measured_and_over_budget_is_3(recipes, capsys):
    build(recipes[:2], n=0)
    before = ids()
    for _ in range(2):
        with pytest.raises(SystemExit) as code:
            build(recipes[:2], n=1)
        assert code.value.code == 3
    assert "over budget: return rate" in capsys.readouterr().out
    assert ids() == before
    assert [verb for verb, _ in lines()] == ["built"] * 2 + ["scored"] * 2


def test_many_give_the_patches_that_each_gives_alone(recipes, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    build(recipes, n=0)
    for i, recipe in enumerate(recipes):
        build([recipe], out=Path("alone"), n=0)
        file = f"quarters-{i}-1.0.0.safetensors"
        assert Path("alone", file).read_bytes() == Path("dist", file).read_bytes()


def test_a_second_batch_is_not_let_into_the_folder(recipes):
    Path("dist").mkdir()
    with Path("dist", batch.LOCK).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(HotfixError, match="another build of several recipes is writing to dist"):
            build(recipes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ray": ["r00/recipe.toml"]}, "is no address"),
        ({"ray": [], "workers": 0}, "--workers 0"),
        ({"workers": 2}, "--workers is about a cluster"),
        ({"plan": True}, "--plan is about one recipe"),
        ({"ray": ["127.0.0.1:1"]}, "no Ray cluster at 127.0.0.1:1|ray is not installed"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(recipes, options, words):
    with pytest.raises(HotfixError, match=words):
        build(recipes, **options)
