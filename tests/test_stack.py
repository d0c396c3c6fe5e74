"""On is on, off is off without a trace, and nothing is ever half on."""

import itertools

import pico
import pytest
import torch
from peft import LoraConfig
from peft.functional import inject_adapter_in_model

from hotfix import beside
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


def test_a_with_block_takes_off_only_what_it_put_on(pipe, patches):
    Stack.of(patches[0]).apply(pipe)
    with Stack.of(*patches[:2]).on(pipe):
        assert len(applied(pipe)) == 2
    assert [entry.id for entry in applied(pipe)] == [patches[0].id]


def test_a_failure_half_way_leaves_the_previous_stack_on(pipe, family, patches, monkeypatch):
    Stack.of(patches[0]).apply(pipe)
    before, hooks = draw(pipe, family), fingerprint(pipe)
    calls = itertools.count()
    register = torch.nn.Module.register_forward_hook

    def failing(self, hook, **options):
        if next(calls) == 3:
            raise MemoryError
        return register(self, hook, **options)

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(torch.nn.Module, "register_forward_hook", failing)
        Stack.of(patches[1]).apply(pipe)
    assert [entry.id for entry in applied(pipe)] == [patches[0].id]
    assert torch.equal(draw(pipe, family), before)
    assert fingerprint(pipe) == hooks


def test_a_hook_lost_on_one_layer_is_told(pipe, patches):
    Stack.of(patches[0]).apply(pipe)
    layer, key, _ = next(beside.hooks(Denoiser(pipe, {}).model))
    del layer._forward_hooks[key]
    assert [entry.state for entry in applied(pipe)] == ["broken"]


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
