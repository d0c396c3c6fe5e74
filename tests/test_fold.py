"""Folded into the weights, with the originals kept: nothing adds up, nothing is lost, nobody is overwritten."""

import itertools
import threading
from functools import cache

import pico
import pytest
import torch
from diffusers.training_utils import EMAModel
from hosts import draw
from patching import denoiser, random_patch

from hotfix import guard, reach
from hotfix.beside import innermost
from hotfix.demo import fingerprint
from hotfix.errors import BaseMismatch, HostError, StackError
from hotfix.fold import Kept
from hotfix.stack import Stack, applied


@cache
def made(family):
    pipe = pico.HOSTS[family]()
    return [random_patch(pipe, f"patch-{seed}", seed, rank=seed + 1, every=seed) for seed in (1, 2, 3)]


@pytest.fixture
def patches(family):
    return made(family)


@pytest.fixture(params=sorted(pico.HOSTS))
def family(request):
    return request.param


@pytest.fixture
def pipe(family):
    return pico.HOSTS[family]()


def bits(pipe):
    """Every number that the model multiplies with, as it is: `state_dict` says what the base has."""
    return torch.cat([p.detach().flatten().double() for p in denoiser(pipe).parameters()])


@pytest.mark.parametrize(
    ("where", "dtype"),
    [("memory", torch.float32), ("memory", torch.bfloat16), ("disk", torch.bfloat16)],
    ids=["memory-float32", "memory-bfloat16", "disk-bfloat16"],
)
def test_a_hundred_changes_leave_no_bit_behind(pipe, family, patches, dtype, where, tmp_path):
    denoiser(pipe).to(dtype)
    original, before = fingerprint(pipe), bits(pipe)
    stacks = [Stack.of(*patches[:n]) for n in (1, 2, 3)]
    alone = {}
    for stack in stacks:
        stack.apply(pipe, fold=True)
        alone[len(stack.patches)] = bits(pipe)
        stack.remove(pipe)
    changes = 100 if family == "sd3" else 20  # every one is compared: the next begins where a fresh one would
    order = torch.randint(3, (changes,), generator=torch.Generator().manual_seed(0)).tolist()
    on = stacks[order[0]]
    on.apply(pipe, fold=True, originals=tmp_path if where == "disk" else None)
    for n in order[1:]:
        on.replace(pipe, stacks[n])
        on = stacks[n]
        assert torch.equal(bits(pipe), alone[len(on.patches)])
    on.remove(pipe)
    assert torch.equal(bits(pipe), before) and fingerprint(pipe) == original
    assert not list(tmp_path.iterdir())


def test_only_touched_weights_are_kept(pipe, patches):
    stack = Stack.of(patches[1])
    stack.apply(pipe, fold=True)
    model = denoiser(pipe)
    touched = [innermost(model, name.split(".", 1)[1]).weight for name in patches[1].layers]
    (on,) = applied(pipe)
    assert on.originals == sum(weight.nbytes for weight in touched) < sum(p.nbytes for p in model.parameters())
    kept = reach.known(model).kept.originals.values()
    assert sum(original.nbytes for original in kept) == on.originals


def test_what_is_saved_is_a_clean_base(pipe, family, patches, tmp_path):
    bare = draw(pipe, family)
    Stack.of(*patches).apply(pipe, fold=True)
    assert not torch.equal(draw(pipe, family), bare)
    pipe.save_pretrained(tmp_path)
    again = type(pico.HOSTS[family]()).from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(again, family), bare, rtol=0, atol=1e-5)  # memory is aligned otherwise
    model = denoiser(pipe)
    model.save_pretrained(tmp_path / "model")
    kept = type(denoiser(pico.HOSTS[family]())).from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in denoiser(pico.HOSTS[family]()).state_dict().items())


def test_a_small_change_is_not_folded_into_few_bits(pipe, family):
    patch = random_patch(pipe, "small", 1, size=1e-3)
    denoiser(pipe).to(torch.bfloat16)
    before = bits(pipe)
    with pytest.raises(StackError, match="would survive in bfloat16"):
        Stack.of(patch).apply(pipe, fold=True)
    assert torch.equal(bits(pipe), before) and not applied(pipe)
    Stack.of(patch).apply(pipe)
    assert [entry.state for entry in applied(pipe)] == ["on"]


def test_a_cast_that_would_drown_it_raises_and_leaves_it_beside(pipe, family):
    patch = random_patch(pipe, "small", 1, size=1e-3)
    Stack.of(patch).apply(pipe, fold=True)
    with pytest.raises(StackError, match="would survive in bfloat16"):
        denoiser(pipe).to(torch.bfloat16)
    assert reach.known(denoiser(pipe)).kept is None
    assert [entry.state for entry in applied(pipe)] == ["on"]
    Stack.of(patch).remove(pipe)
    fresh = pico.HOSTS[family]()
    denoiser(fresh).to(torch.bfloat16)
    assert torch.equal(bits(pipe), bits(fresh))


def test_what_somebody_else_writes_is_told_and_never_overwritten(pipe, family, patches):
    stack = Stack.of(patches[0])
    stack.apply(pipe, fold=True)
    layer = innermost(denoiser(pipe), patches[0].layers[0].split(".", 1)[1])
    with torch.no_grad():
        layer.weight.add_(1.0)
    after = bits(pipe)
    assert [entry.state for entry in applied(pipe)] == ["drifted"]
    with pytest.raises(HostError, match=r"somebody else wrote .*patch-1 1\.0\.0"):
        draw(pipe, family)
    for change in (lambda: stack.remove(pipe), lambda: stack.replace(pipe, Stack.of(patches[1]))):
        with pytest.raises(HostError, match="somebody else wrote"):
            change()
        assert torch.equal(bits(pipe), after)


def add(pipe, weight):
    weight.data.add_(1.0)


def another_tensor(pipe, weight):
    weight.data = weight.data + 1


def moving_average(pipe, weight):
    ema = EMAModel(pico.HOSTS["sd3"]().transformer.parameters())
    ema.copy_to(denoiser(pipe).parameters())


@pytest.mark.parametrize("write", [add, another_tensor, moving_average])
@pytest.mark.parametrize("during", [False, True], ids=["before", "during"])
def test_what_is_written_past_the_version_counter_is_told_too_and_can_be_given_up(write, during):
    pipe, patch = pico.HOSTS["sd3"](), made("sd3")[0]
    stack, bare = Stack.of(patch), draw(pipe, "sd3")
    stack.apply(pipe, fold=True)
    on, model = draw(pipe, "sd3"), denoiser(pipe)
    weight = innermost(model, patch.layers[0].split(".", 1)[1]).weight

    def step(pipe, i, t, arguments):
        write(pipe, weight)
        return arguments

    if not during:
        write(pipe, weight)
    with pytest.raises(HostError, match=r"somebody else wrote .*patch-1 1\.0\.0") as told:
        draw(pipe, "sd3", **({"callback_on_step_end": step} if during else {}))
    with pytest.raises(HostError, match="somebody else wrote") as refused:
        stack.remove(pipe)
    assert told.value.hint == refused.value.hint and "model.load_state_dict(model.state_dict())" in told.value.hint
    model.load_state_dict(model.state_dict())
    assert torch.equal(draw(pipe, "sd3"), on)
    stack.remove(pipe)
    assert torch.equal(draw(pipe, "sd3"), bare) or write is not add


def test_weights_that_are_kept_on_disk_are_no_other_weights(tmp_path):
    pipe, patch = pico.HOSTS["sd3"](), made("sd3")[0]
    cpu, folded = torch.device("cpu"), pico.HOSTS["sd3"]()
    Stack.of(patch).apply(folded, fold=True)
    wanted = draw(folded, "sd3")
    for number, one in enumerate((pipe, folded)):
        where = {"offload_to_disk_path": str(tmp_path / str(number))}
        denoiser(one).enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level", **where)
    assert torch.equal(draw(folded, "sd3"), wanted)
    with pytest.raises(BaseMismatch, match="not in memory") as refused:
        Stack.of(patch).apply(pipe)
    assert "before the pipeline is offloaded" in refused.value.hint


def test_a_change_of_folded_weights_waits_for_the_picture(pipe, family, patches):
    old, new = Stack.of(patches[0]), Stack.of(patches[1])
    old.apply(pipe, fold=True)
    before, model = draw(pipe, family), denoiser(pipe)
    started, done = threading.Event(), []

    def change():
        started.set()
        old.replace(pipe, new)
        done.append(True)

    thread = threading.Thread(target=change)

    def step(module, args, kwargs):
        if not started.is_set():
            thread.start()
            started.wait()
            thread.join(0.3)
            assert not done

    handle = model.register_forward_pre_hook(step, with_kwargs=True)
    assert torch.equal(draw(pipe, family), before)
    thread.join(60)
    handle.remove()
    assert done
    alone = pico.HOSTS[family]()
    new.apply(alone, fold=True)
    assert torch.equal(draw(pipe, family), draw(alone, family))


def test_a_folded_stack_cannot_change_inside_its_own_generation(pipe, family, patches):
    old, new = Stack.of(patches[0]), Stack.of(patches[1])
    old.apply(pipe, fold=True)
    before = bits(pipe)
    with guard.generation(pipe), pytest.raises(HostError, match="inside a generation"):
        old.replace(pipe, new)
    assert torch.equal(bits(pipe), before)


@pytest.mark.parametrize(("where", "times"), [("_copy", 2), ("_write", 0), ("_write", 4)])
def test_a_change_that_is_broken_off_leaves_the_weights_of_the_previous_stack(
    pipe, family, patches, monkeypatch, where, times
):
    """Between one weight and the next, by a memory that runs out or by Ctrl-C."""
    old, new = Stack.of(patches[1]), Stack.of(patches[0])  # every second layer, then every one
    old.apply(pipe, fold=True)
    before, original, called, calls = bits(pipe), fingerprint(pipe), getattr(Kept, where), itertools.count()

    def failing(*args):
        if next(calls) == times:
            raise KeyboardInterrupt
        return called(*args)

    for change in (lambda: new.apply(pipe), lambda: old.replace(pipe, new), lambda: old.remove(pipe)):
        if where == "_copy" and change.__code__.co_names[0] == "remove":
            continue  # it copies nothing
        calls = itertools.count()
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Kept, where, failing)
            change()
        assert torch.equal(bits(pipe), before) and fingerprint(pipe) == original
        assert [(entry.id, entry.state, entry.folded) for entry in applied(pipe)] == [(patches[1].id, "on", True)]
    old.remove(pipe)
    assert not applied(pipe) and not torch.equal(bits(pipe), before)


def test_what_was_off_for_a_while_keeps_its_originals_where_it_kept_them(pipe, patches, tmp_path):
    stack, order = Stack.of(*patches), [patch.id for patch in patches]
    stack.apply(pipe, fold=True, originals=tmp_path)
    before = bits(pipe)
    for off in (stack, Stack.of(patches[0])):
        with off.off(pipe):
            assert not {patch.id for patch in off.patches}.intersection(entry.id for entry in applied(pipe))
        assert [entry.id for entry in applied(pipe)] == order and torch.equal(bits(pipe), before)
        assert reach.known(denoiser(pipe)).kept.folder == tmp_path
