"""Listed, on, or neither: what `hotfix.status` says of a pipeline is what the pipeline is."""

import pico
import pytest
import torch
from patching import denoiser, random_patch

from hotfix.beside import hooks, innermost
from hotfix.stack import Stack
from hotfix.states import status


@pytest.fixture
def pipe():
    return pico.sd15()


@pytest.fixture
def patches(pipe):
    return [random_patch(pipe, f"patch-{seed}", seed) for seed in (1, 2)]


def states(pipe, stack):
    return {row.name: row.state for row in status(pipe, stack)}


@pytest.mark.parametrize("fold", [False, True])
def test_listed_on_both_or_one(pipe, patches, fold):
    first, both = Stack.of(patches[0]), Stack.of(*patches)
    assert states(pipe, both) == {"patch-1": "off", "patch-2": "off"}
    first.apply(pipe, fold=fold)
    assert states(pipe, both) == {"patch-1": "on", "patch-2": "off"}
    assert states(pipe, Stack.of(patches[1])) == {"patch-2": "off", "patch-1": "foreign"}
    assert status(pipe, first)[0].folded is fold
    touched = sum(innermost(denoiser(pipe), name.split(".", 1)[1]).weight.nbytes for name in patches[0].layers)
    assert status(pipe, first)[0].originals == (touched if fold else 0)
    first.remove(pipe)
    assert not states(pipe, Stack())


def test_a_layer_that_is_no_longer_asked_shadows_its_patches(pipe, patches):
    stack = Stack.of(*patches)
    stack.apply(pipe)
    layer, key, _ = next(hooks(denoiser(pipe)))
    del layer._forward_hooks[key]
    assert set(states(pipe, stack).values()) == {"shadowed"}


@pytest.mark.parametrize("fold", [False, True])
def test_weights_that_were_written_to_have_drifted(pipe, patches, fold):
    stack = Stack.of(patches[0])
    stack.apply(pipe, fold=fold)
    with torch.no_grad():
        for name in patches[0].layers:
            weight = innermost(denoiser(pipe), name.split(".", 1)[1]).weight
            weight += weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    assert states(pipe, stack) == {"patch-1": "drifted"}
