"""A build on several processes is the build on one, up to rounding: real processes, as accelerate starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patching import random_patch
from tiny import make_project

from hotfix import lock
from hotfix.building import build
from hotfix.errors import HotfixError
from hotfix.patch import Patch
from hotfix.pipeline import load_pipeline
from hotfix.planning import KEPT
from hotfix.planning import plan as planned
from hotfix.recipe import Recipe
from hotfix.report import Report
from hotfix.scoring import score
from hotfix.stack import Stack

MORE = {"\nsteps = 1": "\nsteps = 6", "\nbatch = 1": "\nbatch = 3", "retain_batch = 1": "retain_batch = 5"}


def launch(count, *arguments, cwd, **variables):
    """As `accelerate launch` does for processes of a CPU: it hands over to torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *arguments]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def commands(*lines, cwd, **variables):
    """Command lines one after another in two processes: what each said on stdout and stderr."""
    words = [json.dumps([str(word) for word in line]) for line in lines]
    done = launch(2, Path(__file__).with_name("commands.py"), *words, cwd=cwd, **variables)
    said = list(zip(done.stdout.split("\f\n"), done.stderr.split("\f\n"), strict=True))
    assert len(said) == len(lines) + 1, done.stderr
    return said[:-1]


def test_every_process_gets_all_rows_and_computes_its_share(tmp_path):
    done = launch(2, Path(__file__).with_name("shared_rows.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_build_on_two_processes_is_the_build_on_one(tmp_path, monkeypatch):
    """Rows that divide unevenly, drawings, trials and scores: the first process alone writes, and speaks once."""
    (path,) = make_project(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    text = path.read_text()
    for one, many in MORE.items():
        assert one in text
        text = text.replace(one, many)
    path.write_text(text)
    ((_, progress),) = commands(("build", path, "-o", "dist", "-n", 3), cwd=tmp_path)
    assert progress.count("the build took") == 1, progress
    two = Patch.load(Path("dist/quarters-0-1.0.0.safetensors"))
    report = Report.load(Path("dist/quarters-0-1.0.0.report.json"))
    recipe = Recipe.load(path)
    one = build(recipe, pipe := load_pipeline(recipe))
    torch.testing.assert_close(dict(two.tensors), dict(one.tensors), rtol=1e-3, atol=1e-6)
    alone = score(pipe, recipe, stack=Stack.of(one), n=3)
    assert report.retain.drift_rmse == pytest.approx(alone.retain.drift_rmse, rel=0.02)  # the change is small
    assert report.build.processes == 2
    assert Path("hotfix.log.jsonl").read_text().count('"built"') == 1


def test_a_score_on_two_processes_is_the_score_on_one_and_said_once(tmp_path, monkeypatch):
    (path,) = make_project(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load(path)
    pipe = load_pipeline(recipe)
    lock.add(Path("hotfix.lock"), [random_patch(pipe, "quarters-0", 1).save(tmp_path)])
    done = launch(2, "-m", "hotfix", "score", "tiny", path, "--stack", "hotfix.lock", "-n", 3, "--json", cwd=tmp_path)
    two = Report.model_validate_json(done.stdout)
    one = score(pipe, recipe, stack=Stack.load("hotfix.lock"), n=3)
    assert two.retain.drift_rmse == pytest.approx(one.retain.drift_rmse, rel=1e-4) and one.retain.drift_rmse > 0
    assert [(row.after, row.sound) for row in two.replays] == [(row.after, row.sound) for row in one.replays]
    assert done.stderr.count("replaying seeds") == done.stderr.count("over budget") == 1
    assert Path("hotfix.log.jsonl").read_text().count('"scored"') == 1


SPLIT = {"ACCELERATE_USE_FSDP": "true"}  # which is what `accelerate launch --use_fsdp` says


def test_a_base_that_is_split_up_is_half_in_each_process_and_gets_the_patch_of_a_whole_one(tmp_path):
    done = launch(2, Path(__file__).with_name("split_base.py"), "sd15", "flux", cwd=tmp_path, **SPLIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is built on") == 4


def test_the_command_line_splits_a_base_up_plans_builds_and_measures(tmp_path, monkeypatch):
    (path,) = make_project(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    path.write_text(path.read_text().replace("batch = 1", "batch = 2"))
    recipe = Recipe.load(path)
    pipe = load_pipeline(recipe)
    asked = ("build", path, "--plan", "--json"), ("build", path, "-o", "dist", "-n", 3)
    (said, _), (_, progress) = commands(*asked, cwd=tmp_path, **SPLIT)
    plan, whole = json.loads(said), planned(recipe, pipe)
    assert plan["bytes"]["base weights"] < 0.6 * whole.weights and plan["bytes"][KEPT] == whole.facts()["bytes"][KEPT]
    assert progress.count("the build took") == 1, progress
    one, two = build(recipe, pipe), Patch.load(Path("dist/quarters-0-1.0.0.safetensors"))
    torch.testing.assert_close(dict(two.tensors), dict(one.tensors), rtol=1e-3, atol=1e-6)
    report = Report.load(Path("dist/quarters-0-1.0.0.report.json"))
    alone = score(pipe, recipe, stack=Stack.of(one), n=3)
    assert report.retain.drift_rmse == pytest.approx(alone.retain.drift_rmse, rel=0.02)
    lock.add(Path("hotfix.lock"), [Path("dist/quarters-0-1.0.0.safetensors")])
    scoring = ("score", "tiny", path, "--stack", "hotfix.lock", "-n", 3, "--json")
    (said, _), (_, refused) = commands(scoring, (*scoring, "--attacks", "samplings"), cwd=tmp_path, **SPLIT)
    scored = Report.model_validate_json(said)
    assert scored.retain.drift_rmse == pytest.approx(report.retain.drift_rmse, rel=1e-4)
    assert "attacks, and several recipes, on a base that is split up" in refused


def test_one_process_has_nobody_to_split_a_base_up_with_and_fewer_bits_are_not_split(tmp_path):
    make_project(tmp_path, 0)
    with pytest.raises(HotfixError, match="no other processes"):
        load_pipeline(str(tmp_path / "tiny"), split=True)
    with pytest.raises(HotfixError, match="on a base that is split up"):
        load_pipeline(str(tmp_path / "tiny"), bits=8, split=True)
