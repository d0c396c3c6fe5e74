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
from hotfix.scoring import score
from hotfix.stack import Stack

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
    for family in sys.argv[1:]:
        folder = Path(tempfile.mkdtemp())
        recipe, pipe = make_recipe(folder, family, steps=4), pico.FAMILIES[family]()
        here, stack = build(recipe, pipe), Stack.of(random_patch(pipe, "quarters", 1))
        pipe.to(device)
        there = build(recipe, pipe, checkpoint=folder)
        torch.testing.assert_close(dict(there.tensors), dict(here.tensors), rtol=1e-3, atol=1e-4)
        denoiser = Denoiser(pipe, recipe.base.call)
        bare = denoiser.draw(["a"], [0])
        with stack.on(pipe):
            beside = denoiser.draw(["a"], [0])
        stack.apply(pipe, fold=True)
        torch.testing.assert_close(denoiser.draw(["a"], [0]), beside, rtol=0, atol=1e-4)
        stack.remove(pipe)
        assert torch.equal(denoiser.draw(["a"], [0]), bare) and not torch.equal(beside, bare)
        score(pipe, recipe, stack=stack, n=2)
        print(family, "is built on")
