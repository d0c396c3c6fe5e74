"""Builds on bases whose weights two processes share out, against builds on whole ones; test_processes.py starts it."""

import sys
import tempfile
from pathlib import Path

import pico
import torch
from conftest import make_recipe

from hotfix import processes
from hotfix.building import build
from hotfix.denoiser import Denoiser
from hotfix.errors import StackError
from hotfix.sharded import shard
from hotfix.stack import Stack

assert processes.split()
for family in sys.argv[1:]:
    whole, pipe = pico.FAMILIES[family](), pico.FAMILIES[family]()
    # A row for each process: in many steps one takes its row on by steps of the sampler, and the other does not.
    recipe = make_recipe(Path(tempfile.mkdtemp()), family, steps=10)
    alike = Denoiser(whole, recipe.base.call), Denoiser(pipe, recipe.base.call)
    name, numbers = type(alike[1].model).__name__, sum(p.numel() for p in alike[1].model.parameters())
    shard(alike[1].model, processes.device())
    assert sum(p.to_local().numel() for p in alike[1].model.parameters()) < 0.51 * numbers
    assert type(alike[1].model).__name__ == name
    drawn = [denoiser.draw(["a"], [0]) for denoiser in alike]
    torch.testing.assert_close(drawn[1], drawn[0], rtol=0, atol=1e-6)
    one, two = build(recipe, whole), build(recipe, pipe)
    torch.testing.assert_close(dict(two.tensors), dict(one.tensors), rtol=1e-3, atol=1e-5)
    before = {key: p.to_local().clone() for key, p in alike[1].model.named_parameters()}
    try:
        Stack.of(two).apply(pipe, fold=True)
    except StackError as error:
        assert "share the weights out" in str(error)
    else:
        raise AssertionError("folded into weights that are split up")
    assert all(torch.equal(p.to_local(), before[key]) for key, p in alike[1].model.named_parameters())
    said = one.manifest, two.manifest
    assert said[0].base == said[1].base and said[0].merge_survival == said[1].merge_survival
    print(family, "is built on")
