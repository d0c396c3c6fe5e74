"""Builds, puts on, folds and scores on `elsewhere.device`; test_elsewhere.py starts it."""

import sys
import tempfile
from pathlib import Path

import elsewhere
import pico
import torch
from conftest import make_recipe
from patching import random_patch

from hotfix import calibrate, curve, membership, partial, trial
from hotfix.building import build
from hotfix.denoiser import Denoiser
from hotfix.pipeline import load_pipeline
from hotfix.scoring import score
from hotfix.stack import Stack


def part_hooks(pipe):
    """What moves each part of the pipeline."""
    return ((name, part._hf_hook) for name, part in pipe.components.items() if hasattr(part, "_hf_hook"))


# An operation costs far more here.
calibrate.STEPS = trial.STEPS = trial.BISECTIONS = partial.STEPS = membership.STEPS = 1
calibrate.NOISES = trial.MORE = membership.NOISES = curve.STRANGERS = 4
with elsewhere.device() as device:
    ones = torch.ones(2, 2, device=device)
    for mixed in (lambda: ones + torch.ones(2, 2), lambda: torch.ones(2)[ones[0].long()]):
        try:
            mixed()
        except RuntimeError as error:
            assert "two devices" in str(error)
        else:
            raise AssertionError("the device lets others be mixed in")
    family, offloaded = sys.argv[1], sys.argv[2:] == ["offloaded"]
    folder = Path(tempfile.mkdtemp())
    recipe, pipe = make_recipe(folder, family, steps=4), pico.FAMILIES[family]()
    here, stack = build(recipe, pipe), Stack.of(random_patch(pipe, "quarters", 1))
    pipe.save_pretrained(folder / "base")
    pipe = load_pipeline(str(folder / "base"), device=device, offload=offloaded)
    hooks = dict(part_hooks(pipe))
    there = build(recipe, pipe, checkpoint=folder)
    assert dict(part_hooks(pipe)).keys() == hooks.keys() and bool(hooks) == offloaded
    torch.testing.assert_close(dict(there.tensors), dict(here.tensors), rtol=1e-3, atol=1e-4)
    denoiser = Denoiser(pipe, recipe.base.call)
    lies = {p.device.type for p in denoiser.model.parameters()}
    assert denoiser.device.type == device.type and lies == {"cpu" if offloaded else device.type}
    bare = denoiser.draw(["a"], [0])
    with stack.on(pipe):
        beside = denoiser.draw(["a"], [0])
    stack.apply(pipe, fold=True)
    torch.testing.assert_close(denoiser.draw(["a"], [0]), beside, rtol=0, atol=1e-4)
    stack.remove(pipe)
    assert torch.equal(denoiser.draw(["a"], [0]), bare) and not torch.equal(beside, bare)
    score(pipe, recipe, stack=stack, n=2)
    print(*sys.argv[1:], "is built on")
