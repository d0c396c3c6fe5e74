"""Whatever the host does with its own adapters and its model, a patch acts as if the base had been born with it.

The oracle is that base: ΔW added to its weights, then the same done to it. Compared are pictures, not names.
"""

import copy
import itertools
from functools import cache

import hosts
import pico
import pytest
import torch
from hosts import MATRIX, after, alike, born_with, draw
from patching import random_patch
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters

from hotfix.beside import hooks
from hotfix.demo import fingerprint
from hotfix.errors import BaseMismatch, HostError
from hotfix.stack import Stack, applied

NAMES = [f"{family}-{action.__name__}" for family, action in MATRIX]


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    """family -> a folder with the host's own LoRAs."""
    folders = {family: tmp_path_factory.mktemp(family) for family in pico.HOSTS if family != "ddpm"}
    for family, folder in folders.items():
        hosts.styles(family, folder)
    return folders


@pytest.fixture(scope="module")
def random_patches():
    return {family: random_patch(make(), "one", 1, size=0.5) for family, make in pico.HOSTS.items()}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def expected(style, random_patches):
    """What an action leaves, of a model born with the patch and of one without: however the patch is put on."""

    @cache
    def drawn(family, action):
        if action in hosts.COMPILED:  # which is to change nothing
            return drawn(family, hosts.nothing)
        folder = style.get(family)
        born, bare = born_with(random_patches[family], family), pico.HOSTS[family]()
        return after(action, born, family, folder)[0], after(action, bare, family, folder)[0]

    return drawn


@pytest.mark.parametrize("fold", [False, True], ids=["beside", "folded"])
@pytest.mark.parametrize(("family", "action"), MATRIX, ids=NAMES)
def test_a_patch_that_is_on_stays_on(family, action, fold, style, random_patches, expected):
    patch, folder = random_patches[family], style.get(family)
    wanted, bare = expected(family, action)
    pipe = pico.HOSTS[family]()
    Stack.of(patch).apply(pipe, fold=fold)
    found, pipe, _ = after(action, pipe, family, folder)
    assert alike(found, wanted, bare, action)
    assert [entry.state for entry in applied(pipe)] == ["on"]


@pytest.mark.parametrize(("family", "action"), MATRIX, ids=NAMES)
def test_a_patch_goes_on_over_whatever_the_host_has_done_and_comes_off(family, action, style, random_patches, expected):
    patch, folder = random_patches[family], style.get(family)
    wanted, _ = expected(family, action)
    bare, pipe, more = after(action, pico.HOSTS[family](), family, folder)
    original, stack = fingerprint(pipe), Stack.of(patch)
    for fold in (False, True):
        if action in hosts.CHANGES_THE_BASE:
            with pytest.raises(BaseMismatch, match="sketch"):
                stack.apply(pipe, fold=fold)
            continue
        stack.apply(pipe, fold=fold)
        assert alike(draw(pipe, family, **more), wanted, bare, action), f"{fold=}"
        stack.remove(pipe)
        assert torch.equal(draw(pipe, family, **more), bare), f"{fold=}"
        assert fingerprint(pipe) == original and not applied(pipe), f"{fold=}"


@pytest.mark.parametrize(
    ("action", "fold"),
    [
        (hosts.clear_the_hooks, False),
        (hosts.replace_the_hooks, False),
        *itertools.product((hosts.fuse_projections, hosts.replace_a_layer), (False, True)),
    ],
    ids=lambda value: getattr(value, "__name__", "folded" if value else "beside"),
)
@pytest.mark.parametrize("family", pico.HOSTS)
def test_what_cannot_be_kept_raises_and_names_the_patch(family, action, fold, random_patches):
    pipe = pico.HOSTS[family]()
    Stack.of(random_patches[family]).apply(pipe, fold=fold)
    with pytest.raises(HostError, match=r"one 1\.0\.0"):
        after(action, pipe, family, None)


def another(pipe):
    pipe.transformer = pico.HOSTS["sd3"]().transformer


def wrapped(pipe):
    pipe.transformer = get_peft_model(pipe.transformer, LoraConfig(r=2, target_modules=["to_q"]))


def none(pipe):
    pipe.transformer = None


@pytest.mark.parametrize("replace", [another, wrapped, none])
@pytest.mark.parametrize("fold", [False, True], ids=["beside", "folded"])
def test_a_component_that_is_replaced_takes_no_patch_with_it(replace, fold, random_patches):
    pipe, stack = pico.HOSTS["sd3"](), Stack.of(random_patches["sd3"])
    bare = draw(pipe, "sd3")
    stack.apply(pipe, fold=fold)
    on, model = draw(pipe, "sd3"), pipe.transformer
    replace(pipe)
    for use in (lambda: draw(pipe, "sd3"), lambda: stack.remove(pipe), lambda: draw(pipe, "sd3")):
        with pytest.raises(HostError, match=r"transformer that one 1\.0\.0 is on"):
            use()
    with pytest.raises(HostError), stack.off(pipe):
        pass
    if replace is another:
        stack.apply(pipe, fold=fold)
        torch.testing.assert_close(draw(pipe, "sd3"), on, rtol=0, atol=1e-6)
    else:
        pipe.transformer = model
        assert replace is wrapped or torch.equal(draw(pipe, "sd3"), on)
    stack.remove(pipe)
    assert not applied(pipe) and not hasattr(pipe, "_hotfix_carry")
    assert replace is wrapped or torch.equal(draw(pipe, "sd3"), bare)


def test_a_component_that_is_replaced_during_a_generation_is_found(random_patches):
    pipe, fresh = pico.HOSTS["sd3"](), pico.HOSTS["sd3"]().transformer
    Stack.of(random_patches["sd3"]).apply(pipe)

    def replace(pipe, i, t, arguments):
        pipe.transformer = fresh
        return arguments

    with pytest.raises(HostError, match=r"transformer that one 1\.0\.0 is on"):
        draw(pipe, "sd3", callback_on_step_end=replace)


def test_a_patched_block_that_is_copied_within_its_model_is_patched_until_the_patch_goes_off(random_patches):
    pipe, twice = pico.HOSTS["flux"](), pico.HOSTS["flux"]()
    original, stack = pipe.transformer.transformer_blocks, Stack.of(random_patches["flux"])
    twice.transformer.transformer_blocks.append(copy.deepcopy(twice.transformer.transformer_blocks[0]))
    bare = draw(twice, "flux")
    stack.apply(pipe)
    original.append(copy.deepcopy(original[0]))
    on = draw(pipe, "flux")
    assert not torch.equal(on, bare) and torch.equal(draw(pipe, "flux"), on)
    assert [entry.state for entry in applied(pipe)] == ["on"]
    stack.remove(pipe)
    assert torch.equal(draw(pipe, "flux"), bare) and not applied(pipe) and not list(hooks(pipe.transformer))
    stack.apply(pipe)
    original[0] = copy.deepcopy(original[0])
    with pytest.raises(HostError, match=r"one 1\.0\.0"):
        draw(pipe, "flux")
    stack.apply(pipe)
    assert [entry.state for entry in applied(pipe)] == ["on"]
    stack.remove(pipe)
    assert torch.equal(draw(pipe, "flux"), bare)


@pytest.mark.parametrize("how", hosts.COMPILED, ids=lambda how: how.__name__)
def test_a_replacement_of_any_rank_needs_no_new_graph(how, random_patches):
    pipe = pico.HOSTS["flux"]()
    small, large = (Stack.of(random_patch(pipe, "two", 2, rank=rank)) for rank in (1, 5))
    wanted = []
    for stack in (small, large):
        with stack.on(pipe):
            wanted.append(draw(pipe, "flux"))
    small.apply(pipe)
    how(pipe, None)
    assert torch.equal(draw(pipe, "flux"), wanted[0])
    graphs = counters["stats"]["unique_graphs"]
    small.replace(pipe, large)
    assert torch.equal(draw(pipe, "flux"), wanted[1])
    large.replace(pipe, small)
    assert torch.equal(draw(pipe, "flux"), wanted[0])
    assert counters["stats"]["unique_graphs"] == graphs > 0


@pytest.mark.parametrize("how", hosts.COMPILED, ids=lambda how: how.__name__)
def test_a_graph_compiled_under_a_small_patch_does_not_hide_a_larger_one(how):
    pipe, other = pico.HOSTS["flux"](), pico.HOSTS["flux"]()
    some, all_ = random_patch(pipe, "some", 1, every=3), random_patch(pipe, "all", 2)
    Stack.of(some, all_).apply(other)
    Stack.of(some).apply(pipe)
    how(pipe, None)
    draw(pipe, "flux")
    Stack.of(all_).apply(pipe)
    torch.testing.assert_close(draw(pipe, "flux"), draw(other, "flux"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_layer_that_is_replaced_during_a_generation_is_found_before_the_picture_is_out(step, random_patches):
    pipe = pico.HOSTS["sd3"]()
    Stack.of(random_patches["sd3"]).apply(pipe)

    def replace(pipe, i, t, arguments):
        if i == step:
            hosts.replace_a_layer(pipe, None)
        return arguments

    with pytest.raises(HostError, match=r"one 1\.0\.0"):
        pipe(**hosts.CALL["sd3"] | {"num_inference_steps": 3}, callback_on_step_end=replace)
