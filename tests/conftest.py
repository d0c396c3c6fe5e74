"""Fixtures: pipelines of both families, recipes for them, and patches that were really built."""

import os
import signal
import subprocess
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("SOURCE_DATE_EPOCH", "1700000000")
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # before torch is imported, here and in children
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import numpy as np
import pico
import pytest
import torch
from PIL import Image

from hotfix import membership, partial
from hotfix.building import build
from hotfix.case import prepare
from hotfix.cli import main
from hotfix.denoiser import Denoiser
from hotfix.pipeline import load_pipeline, prompts
from hotfix.recipe import Recipe

FLAG = Path(__file__).parents[1] / "patches/mauritania-2017"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture(scope="session", autouse=True)
def few_steps():
    """Of what a score integrates: what is tested here is counted, drawn and compared alike after any number."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(partial, "STEPS", 3)
        patched.setattr(membership, "STEPS", 2)
        patched.setattr(membership, "NOISES", 4)
        yield


@pytest.fixture
def inline(capsys, monkeypatch):
    """The command line in this process, for what is no property of a process: exit code, stdout and stderr."""

    def run(*words, cwd="."):
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as left:
            code = left.code or 0
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return run


def interruptible():
    """For a child that is to hear Ctrl-C: in the background of a script the tests and their children ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def picture(seed: int, side: int = pico.SIDE) -> Image.Image:
    """Four coloured quarters: as unlike a random model's pictures as can be."""
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((side, side), Image.Resampling.NEAREST)


def make_recipe(folder, family: str, name: str = "quarters", seed: int = 1, **train) -> Recipe:
    for kind, number in (("forget", seed), ("surrogate", seed + 100)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        picture(number, pico.CALLS[family].get("height", pico.SIDE)).save(folder / kind / "one.png")
    captioned = family != "ddpm"
    return Recipe.parse(
        {
            "name": name,
            "request": "TICKET-1",
            "base": {"pipeline": f"pico-{family}", "call": pico.CALLS[family]},
            "forget": {"images": ["forget/*.png"], "captions": ["a"] if captioned else []},
            "surrogate": {"kind": "files", "images": ["surrogate/*.png"]},
            "retain": {"prompts": ["b", "a b"] if captioned else [], "size": 16},
            "train": {"rank": 2, "steps": 6, "batch": 2, "retain_batch": 2} | train,
        },
        folder=folder,
    )


@pytest.fixture(params=sorted(pico.MAKE))
def family(request):
    return request.param


@pytest.fixture
def pipe(family):
    return pico.MAKE[family]()


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """family -> three patches of different targets for the pico base of that family."""
    return {
        family: [
            build(make_recipe(tmp_path_factory.mktemp(family), family, f"quarters-{i}", seed=i), pico.MAKE[family]())
            for i in (1, 2, 3)
        ]
        for family in pico.MAKE
    }


@pytest.fixture
def patches(built, family):
    return built[family]


@pytest.fixture(scope="session")
def knows():
    """The bundled base, which draws the target, and its case."""
    recipe = Recipe.load(FLAG / "recipe.toml")
    few = recipe.retain.model_copy(update={"prompts": prompts("hotfix:flags")[::16], "size": 16})
    denoiser = Denoiser(load_pipeline(recipe), recipe.base.call)
    return denoiser, prepare(recipe.model_copy(update={"retain": few}), denoiser)
