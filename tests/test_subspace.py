"""What a patch may not read, it does not read: in the algebra, in a finished patch, and above other patches."""

import pico
import pytest
import torch
from conftest import make_recipe
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hotfix.train as training
from hotfix.building import build
from hotfix.errors import RecipeError
from hotfix.fold import delta
from hotfix.patch import A, B, Patch
from hotfix.project import leading, without
from hotfix.stack import Stack
from hotfix.subspace import Shut, inputs

CLOSE = 1e-5  # of the length of the rows: what float32 leaves


@st.composite
def layer_inputs(draw):
    """Inputs of a layer, some directions of them much larger than others."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, d = draw(st.integers(1, 30)), draw(st.integers(2, 30))
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ torch.diag(torch.logspace(0, -3, d).double())


@given(layer_inputs(), st.floats(0.05, 0.999))
def test_the_directions_hold_their_share_of_the_energy_and_one_fewer_would_not(x, share):
    U, whole = leading(x, share), x.square().sum()
    torch.testing.assert_close(U @ U.T, torch.eye(len(U), dtype=U.dtype))
    assert (x @ U.T).square().sum() >= (share - 1e-9) * whole
    assert (x @ U[:-1].T).square().sum() < (share + 1e-9) * whole


@given(layer_inputs())
def test_the_whole_share_spans_every_input_and_no_input_spans_nothing(x):
    assert without(x, leading(x, 1.0)).norm() <= 1e-6 * x.norm()
    assert len(leading(torch.zeros_like(x), 1.0)) == 0


@given(layer_inputs(), st.floats(0.05, 0.999), st.integers(1, 8))
def test_a_patch_does_nothing_to_an_input_that_it_may_not_read_and_all_it_did_to_others(x, share, rank):
    generator = torch.Generator().manual_seed(rank)
    a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((rank, x.shape[1]), (5, rank)))
    U = leading(x, share)
    shut, inside = without(a, U), x @ U.T @ U
    change = delta(a, b).double()
    bound = CLOSE * float(change.norm() * x.norm())
    assert (inside @ (b @ shut).T).norm() <= bound
    outside = x - inside
    assert (outside @ (b @ shut).T - outside @ (b @ a).T).norm() <= bound
    torch.testing.assert_close(without(shut, U), shut)


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(6, 4), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, (3, 1), stride=2, padding=(1, 0))],
    ids=["linear", "conv", "strided"],
)
def test_the_inputs_of_a_layer_are_what_it_multiplies_its_weight_with(layer):
    x = torch.randn(2, 5, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 3, 8, 8)
    out = layer(x) if isinstance(layer, nn.Linear) else layer(x).flatten(2).mT
    wanted = (out - layer.bias).flatten(0, -2)
    torch.testing.assert_close(inputs(layer, x) @ layer.weight.flatten(1).T, wanted)


def read(patch, directions):
    """How much of each A lies in the directions, layer by layer, as a share of its length."""
    found = {}
    for name in patch.layers:
        rows = patch.tensors[name + A].flatten(1)
        U = directions.get(name.partition(".")[2])
        if U is not None and len(U):
            found[name] = float((rows @ U.T).norm() / rows.norm())
    return found


def test_a_finished_patch_reads_nothing_that_carries_retained_pictures(tmp_path, family, pipe, patches, monkeypatch):
    shut, said, retained = [], [], training.retained
    monkeypatch.setattr(training, "retained", lambda *args: shut.append(retained(*args)) or shut[0])
    patch = build(make_recipe(tmp_path, family, surgery="subspace", variance=0.8, lr=1e-2), pipe, stage=said.append)
    assert set(shut[0]) == {name.partition(".")[2] for name in patch.layers}
    assert max(read(patch, shut[0]).values()) < CLOSE
    assert max(read(patches[0], shut[0]).values()) > 0.1  # any other rule does read them
    assert all(patch.tensors[name + B].any() for name in patch.layers)  # and this one learns all the same
    assert any("of the input directions were left open" in words for words in said)


def below(stack):
    """The rows of every A of a stack, as directions by layer."""
    names = {name for patch in stack for name in patch.layers}
    rows = {name: torch.cat([patch.tensors[name + A].flatten(1) for patch in stack]) for name in names}
    return {name.partition(".")[2]: leading(found, 1.0) for name, found in rows.items()}


def test_a_patch_reads_nothing_that_the_patches_beneath_it_read(tmp_path, family, pipe, patches):
    stack = Stack.of(*patches[:2])
    recipe = make_recipe(tmp_path, family, "quarters-8", seed=8, orthogonal_to_stack=True, rank=1, lr=1e-2)
    patch = build(recipe, pipe, stack=stack)
    assert max(read(patch, below(stack.patches)).values()) < CLOSE
    assert max(read(patches[2], below(stack.patches)).values()) > 0.1  # a patch that was built alone does read it
    for old in stack.patches:
        for name in patch.layers:
            new, rows = patch.tensors[name + A].flatten(1), old.tensors[name + A].flatten(1)
            assert (new @ rows.T).norm() <= CLOSE * new.norm() * rows.norm()
    loaded = Patch.load(patch.save(tmp_path))
    assert loaded.id == patch.id
    assert not Stack.of(*stack.patches, loaded).problems(pipe)


@pytest.mark.parametrize("train", [{"surgery": "subspace"}, {"orthogonal_to_stack": True}], ids=["retained", "stack"])
def test_every_step_keeps_out_so_that_nothing_is_left_to_take_out_of_the_average(tmp_path, built, monkeypatch, train):
    taken, call = [], Shut.__call__

    def recorded(shut, vector):
        out = call(shut, vector)
        taken.append(float((out - vector).norm() / vector.norm()))
        return out

    monkeypatch.setattr(Shut, "__call__", recorded)
    stack = Stack.of(built["sd3"][0]) if "orthogonal_to_stack" in train else Stack()
    build(make_recipe(tmp_path, "sd3", "quarters-8", seed=8, **train), pico.sd3(), stack=stack)
    first, *_, average = taken
    assert 0.1 < first < 0.9  # of the first A: there is something to take out, and something left to begin with
    assert average < CLOSE


def test_nothing_beneath_is_refused_before_anything_is_trained(tmp_path):
    recipe, trained = make_recipe(tmp_path, "ddpm", orthogonal_to_stack=True), []
    with pytest.raises(RecipeError, match="no patch beneath"):
        build(recipe, pico.ddpm(), progress=lambda *_: trained.append(1))
    assert not trained
