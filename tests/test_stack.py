"""On is on, off is off without a trace, and nothing is ever half on."""

import itertools
import threading

import pico
import pytest
import torch
from peft import LoraConfig
from peft.functional import inject_adapter_in_model

from hotfix import beside, guard, reach, snapshot, switch
from hotfix import stack as stacks
from hotfix.demo import fingerprint
from hotfix.denoiser import Denoiser
from hotfix.errors import BaseMismatch, StackError
from hotfix.patch import Patch
from hotfix.stack import Stack, applied


def draw(pipe, family):
    return Denoiser(pipe, pico.CALLS[family]).draw(["a", "b"], [0, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_remove_restores_every_bit_and_key(pipe, family, patches, dtype):
    pipe.to(dtype)
    original, before = fingerprint(pipe), draw(pipe, family)
    stack = Stack.of(*patches)
    stack.apply(pipe)
    assert not torch.equal(draw(pipe, family), before)
    stack.remove(pipe)
    assert fingerprint(pipe) == original
    assert torch.equal(draw(pipe, family), before)


def test_state_dict_is_untouched_while_a_patch_is_on(pipe, family, patches):
    before = {k: v.clone() for k, v in Denoiser(pipe, {}).model.state_dict().items()}
    Stack.of(*patches).apply(pipe)
    after = Denoiser(pipe, {}).model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_apply_twice_is_once(pipe, family, patches):
    stack = Stack.of(patches[0])
    stack.apply(pipe)
    once = draw(pipe, family)
    stack.apply(pipe)
    assert torch.equal(draw(pipe, family), once)
    assert [entry.name for entry in applied(pipe)] == ["quarters-1"]


def test_order_changes_only_the_last_bits(family, patches):
    pictures = []
    for order in itertools.permutations(patches):
        pipe = pico.MAKE[family]()
        Stack.of(*order).apply(pipe)
        pictures.append(draw(pipe, family))
    for other in pictures[1:]:
        torch.testing.assert_close(other, pictures[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_removing_one_leaves_the_bits_of_the_others_alone(family, patches, gone):
    rest = [patch for i, patch in enumerate(patches) if i != gone]
    pipe, alone = pico.MAKE[family](), pico.MAKE[family]()
    Stack.of(*patches).apply(pipe)
    Stack.of(patches[gone]).remove(pipe)
    Stack.of(*rest).apply(alone)
    assert torch.equal(draw(pipe, family), draw(alone, family))


def test_the_effect_is_delta_w_x(pipe, family, patches):
    model, patch = Denoiser(pipe, {}).model, patches[0]
    for name in patch.layers:
        layer = beside.innermost(model, name.split(".", 1)[1])
        a, b = patch.tensors[f"{name}.lora_A.weight"], patch.tensors[f"{name}.lora_B.weight"]
        x = torch.randn((2, a.shape[1], 4, 4) if a.ndim == 4 else (2, a.shape[1]))
        bare = layer(x)
        delta = (b.flatten(1) @ a.flatten(1)).reshape(layer.weight.shape)
        with torch.no_grad():
            zeros = torch.zeros_like(bare)
            wanted = (
                zeros + torch.nn.functional.linear(x, delta)
                if a.ndim == 2
                else torch.nn.functional.conv2d(x, delta, None, layer.stride, layer.padding)
            )
        with Stack.of(patch).on(pipe):
            torch.testing.assert_close(layer(x) - bare, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["sd3"])
def test_one_row_without_a_batch_is_patched_as_it_is_in_a_batch(pipe, patches):
    stack = Stack.of(patches[0])
    stack.apply(pipe)
    layer, _, _ = next(beside.hooks(pipe.transformer))
    x = torch.randn(layer.in_features)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


def test_what_is_put_on_or_first_drawn_in_inference_mode_has_gradients_afterwards(pipe, family, patches):
    with torch.inference_mode():
        Stack.of(patches[0]).apply(pipe)
    layer, _, _ = next(beside.hooks(Denoiser(pipe, {}).model))
    shape = (2, layer.in_features) if isinstance(layer, torch.nn.Linear) else (1, layer.in_channels, 4, 4)
    for dtype in (torch.float32, torch.float64):
        layer.to(dtype)
        with torch.inference_mode():
            layer(torch.ones(shape, dtype=dtype))
        x = torch.ones(shape, dtype=dtype, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None


def test_a_with_block_takes_off_only_what_it_put_on(pipe, patches):
    Stack.of(patches[0]).apply(pipe)
    with Stack.of(*patches[:2]).on(pipe):
        assert len(applied(pipe)) == 2
    assert [entry.id for entry in applied(pipe)] == [patches[0].id]


@pytest.mark.parametrize("fold", [False, True], ids=["beside", "folded"])
def test_with_blocks_that_overlap_hold_until_the_last_one_ends(pipe, family, patches, fold):
    other, stack, first = Stack.of(patches[2]), Stack.of(*patches[:2]), Stack.of(patches[0])
    other.apply(pipe, fold=fold)
    bare = draw(pipe, family)
    one, two = stack.on(pipe), first.on(pipe)
    one.__enter__()
    with stack.on(pipe):
        on = draw(pipe, family)
        two.__enter__()
        one.__exit__(None, None, None)
        assert torch.equal(draw(pipe, family), on)
    assert {entry.id for entry in applied(pipe)} == {patches[0].id, patches[2].id}
    two.__exit__(None, None, None)
    assert torch.equal(draw(pipe, family), bare)
    stack.apply(pipe)
    name = guard.snapshot_id(pipe)
    one, two = stack.off(pipe), first.off(pipe)
    one.__enter__()
    with stack.off(pipe):
        two.__enter__()
        one.__exit__(None, None, None)
        assert torch.equal(draw(pipe, family), bare)
    assert {entry.id for entry in applied(pipe)} == {patches[1].id, patches[2].id}
    two.__exit__(None, None, None)
    assert guard.snapshot_id(pipe) == name and torch.equal(draw(pipe, family), on)
    with pytest.raises(StackError, match="listed 2 times"), Stack.of(patches[0], patches[0]).on(pipe):
        pass
    assert guard.snapshot_id(pipe) == name
    assert not any(users for blocks in (stacks._ON, stacks._OFF) for users in blocks._users.values())


def test_a_block_that_begins_while_the_last_one_ends_is_not_left_bare(pipe, patches, monkeypatch):
    stack, called, begun = Stack.of(patches[0]), stacks.switch, []
    first, second = stack.on(pipe), stack.on(pipe)
    first.__enter__()

    def after_another(*args):
        if not begun:
            begun.append(True)
            second.__enter__()
        return called(*args)

    monkeypatch.setattr(stacks, "switch", after_another)
    first.__exit__(None, None, None)
    assert begun and [entry.id for entry in applied(pipe)] == [patches[0].id]
    second.__exit__(None, None, None)
    assert not applied(pipe)


@pytest.mark.parametrize("fold", [False, True], ids=["beside", "folded"])
def test_what_was_off_for_a_while_goes_on_again_over_weights_that_have_moved(pipe, patches, fold):
    stack = Stack.of(*patches[:2])
    stack.apply(pipe, fold=fold)
    with stack.off(pipe), torch.no_grad():
        for p in Denoiser(pipe, {}).model.parameters():
            p += 0.1 * p.std().nan_to_num(0) * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    assert [(entry.id, entry.state, entry.folded) for entry in applied(pipe)] == [
        (patch.id, "on", fold) for patch in patches[:2]
    ]


BROKEN_OFF = [
    (torch, "cat", 3),
    (snapshot.Product, "on", 5),
    (reach, "reached", 0),
    (reach, "_links", 0),
    (switch, "check", 0),
    (torch.nn.Module, "register_forward_hook", 3),
]


@pytest.mark.parametrize(
    ("owner", "name", "times", "previous"),
    [(*where, previous) for where in BROKEN_OFF for previous in (False, True)][:-1],  # hooks are there already
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_failure_half_way_leaves_the_previous_stack_on(
    pipe, family, patches, monkeypatch, previous, owner, name, times
):
    on = patches[:1] if previous else []
    Stack.of(*on).apply(pipe)
    before, whole, kinds = draw(pipe, family), fingerprint(pipe), (type(pipe), type(Denoiser(pipe, {}).model))
    calls, called = itertools.count(), getattr(owner, name)

    def failing(*args, **options):
        if next(calls) == times:
            raise MemoryError
        return called(*args, **options)

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(owner, name, failing)
        Stack.of(patches[1]).apply(pipe)
    assert [entry.id for entry in applied(pipe)] == [patch.id for patch in on]
    assert torch.equal(draw(pipe, family), before)
    assert fingerprint(pipe) == whole
    assert (type(pipe), type(Denoiser(pipe, {}).model)) == kinds


def test_a_hook_lost_on_one_layer_is_told(pipe, patches):
    Stack.of(patches[0]).apply(pipe)
    layer, key, _ = next(beside.hooks(Denoiser(pipe, {}).model))
    del layer._forward_hooks[key]
    assert [entry.state for entry in applied(pipe)] == ["shadowed"]


def test_the_hosts_own_adapter_neither_loses_nor_kills_the_patch(pipe, family, patches):
    model = Denoiser(pipe, {}).model
    Stack.of(patches[0]).apply(pipe)
    patched = draw(pipe, family)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q", "to_v"]), model, "style")  # B = 0: no effect yet
    assert torch.equal(draw(pipe, family), patched)
    assert [entry.state for entry in applied(pipe)] == ["on"]
    Stack.of(patches[0]).remove(pipe)
    assert not applied(pipe)
    Stack.of(patches[0]).apply(pipe)  # now under the host's wrappers
    assert torch.equal(draw(pipe, family), patched)


@pytest.mark.parametrize("seed", [1, 2])
def test_another_base_of_the_same_class_is_refused_untouched(family, patches, seed):
    other = pico.MAKE[family](seed=seed)
    original = fingerprint(other)
    with pytest.raises(BaseMismatch, match="sketch"):
        Stack.of(patches[0]).apply(other)
    assert fingerprint(other) == original


def test_a_related_base_is_taken_when_somebody_allows_it_and_that_is_recorded(pipe, family, patches):
    with torch.no_grad():
        for p in Denoiser(pipe, {}).model.parameters():
            p += 0.1 * p.std().nan_to_num(0) * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    original, stack = fingerprint(pipe), Stack.of(patches[0])
    with pytest.raises(BaseMismatch, match="like those, but differ") as refused:
        stack.apply(pipe)
    assert "--allow-related-base" in refused.value.hint
    assert fingerprint(pipe) == original
    stack.apply(pipe, allow_related_base=True)
    assert [(entry.state, entry.related) for entry in applied(pipe)] == [("on", True)]
    stack.remove(pipe)
    assert fingerprint(pipe) == original


def test_another_base_is_refused_even_then(family, patches):
    other = pico.MAKE[family](seed=1)
    with pytest.raises(BaseMismatch, match="are others"):
        Stack.of(patches[0]).apply(other, allow_related_base=True)
    assert not applied(other)


def test_a_base_of_another_class_is_refused(built):
    with pytest.raises(BaseMismatch, match="which the StableDiffusion3Pipeline has not"):
        Stack.of(built["ddpm"][0]).apply(pico.sd3())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_same_base_in_another_dtype_is_recognised(pipe, patches, dtype):
    Stack.of(patches[0]).check(pipe.to(dtype))


def test_all_problems_are_told_at_once(pipe, family, built):
    other = built["sd3" if family == "ddpm" else "ddpm"][0]
    with pytest.raises(StackError) as caught:
        Stack.of(built[family][1], built[family][1], other).check(pipe)
    assert "quarters-2 is listed 2 times" in str(caught.value)
    assert "which the" in str(caught.value)


def test_a_saved_stack_is_the_same_stack(patches, tmp_path):
    stack = Stack.of(*(Patch.load(patch.save(tmp_path / "dist")) for patch in patches))
    again = Stack.load(stack.save(tmp_path / "hotfix.lock"))
    assert [patch.id for patch in again.patches] == [patch.id for patch in patches]
    assert str(tmp_path) not in (tmp_path / "hotfix.lock").read_text()


def test_a_patch_in_no_file_cannot_be_locked(patches, tmp_path):
    with pytest.raises(StackError, match="in no file yet"):
        Stack.of(patches[0]).save(tmp_path / "hotfix.lock")
    assert not (tmp_path / "hotfix.lock").exists()


# Replacing, and pictures that are being made meanwhile


def test_replace_is_never_bare_and_undoes_itself_when_it_fails(pipe, family, patches, monkeypatch):
    old, new = Stack.of(patches[0]), Stack.of(patches[1], patches[2])
    old.apply(pipe)
    bare_or_old = draw(pipe, family)
    seen = []
    check = reach.check

    def watched(model):
        seen.append([entry.id for entry in applied(pipe)])
        check(model)

    with monkeypatch.context() as patched:
        patched.setattr(switch, "check", watched)
        old.replace(pipe, new)
    assert seen and all(seen)
    assert [entry.id for entry in applied(pipe)] == [patch.id for patch in new.patches]
    alone = pico.MAKE[family]()
    new.apply(alone)
    assert torch.equal(draw(pipe, family), draw(alone, family))

    def broken(model):
        raise MemoryError

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(switch, "check", broken)
        new.replace(pipe, old)
    assert [entry.id for entry in applied(pipe)] == [patch.id for patch in new.patches]
    new.replace(pipe, old)
    assert torch.equal(draw(pipe, family), bare_or_old)


def test_a_replacement_has_the_order_of_the_new_stack(pipe, family, patches):
    one, two, three = patches
    Stack.of(one, two).apply(pipe)
    for old, new in (((one, two), (two, one)), ((two, one), (three, one)), ((three, one), (three, two, one))):
        Stack.of(*old).replace(pipe, Stack.of(*new))
        alone = pico.MAKE[family]()
        Stack.of(*new).apply(alone)
        assert [entry.id for entry in applied(pipe)] == [patch.id for patch in new]
        assert torch.equal(draw(pipe, family), draw(alone, family))


def test_a_refused_replacement_changes_nothing(pipe, family, patches):
    old = Stack.of(patches[0])
    old.apply(pipe)
    before = draw(pipe, family)
    with pytest.raises(StackError, match="listed 2 times"):
        old.replace(pipe, Stack.of(patches[1], patches[1]))
    assert torch.equal(draw(pipe, family), before)


def test_another_version_goes_on_only_in_place_of_the_first(pipe, patches):
    first = patches[0]
    raw = first.manifest.model_copy(update={"version": "2.0.0"}).text()
    second = Patch(raw, first.entries)
    Stack.of(first).apply(pipe)
    with pytest.raises(StackError, match="is on already"):
        Stack.of(second).apply(pipe)
    Stack.of(first).replace(pipe, Stack.of(second))
    assert [entry.version for entry in applied(pipe)] == ["2.0.0"]


def test_a_picture_is_made_wholly_under_the_stack_that_it_began_with(pipe, family, patches):
    old, new, bare = Stack.of(patches[0]), Stack.of(patches[1]), Stack()
    call = pico.CALLS[family] | {"output_type": "np"} | ({"prompt": "a"} if family == "sd3" else {})

    def picture(during=lambda: None):
        model = Denoiser(pipe, {}).model
        steps = itertools.count()

        def step(module, args, kwargs):
            if next(steps) == 1:
                during()

        handle = model.register_forward_pre_hook(step, with_kwargs=True)
        made = pipe(**call, generator=torch.Generator().manual_seed(0))
        handle.remove()
        return torch.from_numpy(made.images), made.hotfix if hasattr(made, "hotfix") else ""

    def elsewhere(change):
        def run():
            thread = threading.Thread(target=change)
            thread.start()
            thread.join(60)
            assert not thread.is_alive(), "a change waits for no picture"

        return run

    pictures = {}
    for words, stack in (("bare", bare), ("old", old), ("new", new)):
        with stack.on(pipe):
            pictures[words] = picture()
    assert len({name for _, name in pictures.values()}) == 3
    for first, change, then in (
        ("bare", lambda: old.apply(pipe), "old"),
        ("old", lambda: old.replace(pipe, new), "new"),
        ("new", lambda: new.remove(pipe), "bare"),
        ("bare", lambda: old.apply(pipe), "old"),
    ):
        under, name = picture(elsewhere(change))
        assert torch.equal(under, pictures[first][0]) and name == pictures[first][1], f"{first} to {then}"
        after, name = picture()
        assert torch.equal(after, pictures[then][0]) and name == pictures[then][1], f"after {first} to {then}"
    old.remove(pipe)
    assert not list(beside.hooks(Denoiser(pipe, {}).model))


def test_after_the_last_picture_no_trace_is_left(pipe, family, patches):
    original, kinds = fingerprint(pipe), (type(pipe), type(Denoiser(pipe, {}).model))
    stack = Stack.of(*patches)
    stack.apply(pipe)
    with guard.generation(pipe):
        stack.remove(pipe)
        assert [entry.name for entry in applied(pipe)] == [patch.name for patch in patches]
    assert (type(pipe), type(Denoiser(pipe, {}).model)) == kinds
    assert fingerprint(pipe) == original and not applied(pipe)
    assert not any(vars(pipe).get(reach.BOARD) or vars(model).get(reach.BOARD) for model in reach.models(pipe).values())


@pytest.mark.parametrize("what", ["pipeline", "model"])
def test_a_call_that_is_on_its_way_when_the_last_patch_goes_off_is_made(what, patches, pipe, family):
    """As threads may have it: the class that was on is looked up, then it is gone, then its call begins."""
    denoiser = Denoiser(pipe, pico.CALLS[family])
    x, rows = torch.zeros((1, *denoiser.latent_shape)), denoiser.embed(["a"])
    own = pipe if what == "pipeline" else denoiser.model
    given = {"timestep": torch.ones(1), "return_dict": False, **rows}
    call = dict(output_type="pt", **({"prompt": "a"} if rows else {}))

    def made(function):
        if what == "model":
            return function(own, x, **given)[0]
        return function(own, generator=torch.Generator().manual_seed(0), **pico.CALLS[family] | call).images

    with torch.no_grad():
        bare = made(type(own).__call__)
        stack = Stack.of(patches[0])
        stack.apply(pipe)
        on_its_way = type(own).__call__
        assert not torch.equal(made(on_its_way), bare)
        stack.remove(pipe)
        assert torch.equal(made(on_its_way), bare)


def test_a_replacement_mends_a_patch_that_has_lost_a_hook_and_puts_it_on_once(pipe, family, patches):
    both, alone = Stack.of(*patches[:2]), pico.MAKE[family]()
    Stack.of(patches[0]).apply(pipe)
    layer, key, _ = next(beside.hooks(Denoiser(pipe, {}).model))
    del layer._forward_hooks[key]
    Stack.of(patches[0]).replace(pipe, both)
    both.apply(alone)
    assert [(entry.id, entry.state) for entry in applied(pipe)] == [(patch.id, "on") for patch in both.patches]
    assert torch.equal(draw(pipe, family), draw(alone, family))


def test_of_changes_in_several_threads_none_is_lost(pipe, family, patches):
    """Whatever each of them found on before: it decides again where another one was faster."""
    together = threading.Barrier(len(patches))

    def each(change):
        def run(patch):
            together.wait(60)
            change(Stack.of(patch))

        threads = [threading.Thread(target=run, args=(patch,)) for patch in patches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()

    for _ in range(10):
        each(lambda stack: stack.apply(pipe))
        assert {entry.id for entry in applied(pipe)} == {patch.id for patch in patches}
        each(lambda stack: stack.remove(pipe))
        assert not applied(pipe)


class App:
    components = ("a", "b")

    def __init__(self):
        self.begun, self.end = threading.Event(), threading.Event()

    def __call__(self):
        self.begun.set()
        self.end.wait(60)


class Unready(App):
    @property
    def components(self):
        raise RuntimeError("not ready")


@pytest.mark.parametrize("kind", [App, Unready])
def test_calls_of_anybodys_objects_in_other_threads_are_let_be(kind, patches, pipe):
    app = kind()
    thread = threading.Thread(target=app)
    thread.start()
    assert app.begun.wait(60)
    try:
        Stack.of(patches[0]).apply(pipe)
    finally:
        app.end.set()
        thread.join(60)
    assert [entry.state for entry in applied(pipe)] == ["on"]


def test_a_change_between_the_decision_and_the_switch_is_seen(pipe, family, patches, monkeypatch):
    one, two = Stack.of(patches[0]), Stack.of(patches[1])
    called, first = stacks.switch, [True]

    def after_another(*args):
        if first and first.pop():
            thread = threading.Thread(target=lambda: two.apply(pipe))
            thread.start()
            thread.join(60)
        return called(*args)

    monkeypatch.setattr(stacks, "switch", after_another)
    one.apply(pipe)
    assert [entry.id for entry in applied(pipe)] == [patches[1].id, patches[0].id]


def test_what_was_off_for_a_while_is_back_in_its_place(pipe, family, patches):
    Stack.of(*patches).apply(pipe)
    before, name = draw(pipe, family), guard.snapshot_id(pipe)
    with Stack.of(patches[0]).off(pipe):
        assert [entry.id for entry in applied(pipe)] == [patch.id for patch in patches[1:]]
    assert guard.snapshot_id(pipe) == name and torch.equal(draw(pipe, family), before)
