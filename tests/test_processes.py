"""A build on several processes is the build on one, up to rounding: real processes, as accelerate starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pico
import pytest
import torch
from conftest import picture

from hotfix.building import build
from hotfix.patch import Patch
from hotfix.pipeline import load_pipeline
from hotfix.recipe import Recipe
from hotfix.report import Report
from hotfix.scoring import score
from hotfix.stack import Stack

RECIPE = """
name = "quarters"
[base]
pipeline = "base"
call = { num_inference_steps = 3 }
[forget]
images = ["forget/*.png"]
[surrogate]
kind = "files"
images = ["surrogate/*.png"]
[retain]
size = 16
[train]
rank = 2
steps = 6
batch = 3
retain_batch = 5
"""


def launch(count, *arguments, cwd):
    """As `accelerate launch` does for processes of a CPU: it hands over to torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *arguments]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def project(tmp_path):
    for kind, seed in (("forget", 1), ("surrogate", 101)):
        (tmp_path / kind).mkdir()
        picture(seed).save(tmp_path / kind / "one.png")
    pico.ddpm().save_pretrained(tmp_path / "base")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def test_every_process_gets_all_rows_and_computes_its_share(tmp_path):
    done = launch(2, Path(__file__).with_name("shared_rows.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_build_on_two_processes_is_the_build_on_one(project):
    """Rows that divide unevenly, drawings, trials and scores: the first process alone writes, and speaks once."""
    done = launch(2, "-m", "hotfix", "build", "recipe.toml", "-o", "dist", "-n", 3, cwd=project)
    assert done.stderr.count("the build took") == 1, done.stderr
    two = Patch.load(project / "dist/quarters-1.0.0.safetensors")
    report = Report.load(project / "dist/quarters-1.0.0.report.json")
    recipe = Recipe.load(project / "recipe.toml")
    recipe = recipe.model_copy(update={"base": recipe.base.model_copy(update={"pipeline": str(project / "base")})})
    one = build(recipe, pipe := load_pipeline(recipe))
    torch.testing.assert_close(dict(two.tensors), dict(one.tensors), rtol=1e-3, atol=1e-6)
    alone = score(pipe, recipe, stack=Stack.of(one), n=3)
    assert report.retain.drift_rmse == pytest.approx(alone.retain.drift_rmse, rel=0.02)  # the change is small
    assert report.build.processes == 2
    assert (project / "hotfix.log.jsonl").read_text().count('"built"') == 1
