"""A user's adapter goes on as its loader puts it on and leaves no trace; a distilled one does what several steps do."""

from functools import partial

import pico
import pytest
import torch
from conftest import make_recipe
from patching import component, effect, layers, outputs, random_patch
from patching import denoiser as network
from peft import LoraConfig

from hotfix import attack_noise, lora
from hotfix.attack_adapters import distillation_loss, loaded
from hotfix.attack_weights import trained
from hotfix.case import prepare
from hotfix.demo import fingerprint
from hotfix.denoiser import Denoiser
from hotfix.errors import HotfixError
from hotfix.stack import Stack, applied


@pytest.mark.parametrize("family", sorted(pico.FAMILIES))
def test_an_adapter_acts_at_its_weight_beside_the_patch_and_comes_off_without_a_trace(family):
    pipe = pico.FAMILIES[family]()
    bare, model, names = fingerprint(pipe), network(pipe), layers(network(pipe))
    patch, other = (random_patch(pipe, "quarters", 1), random_patch(pipe, "style", 3))
    alone = effect(pipe, other, partial(Stack.of(other).apply, pipe))
    Stack.of(other).remove(pipe)
    factors = {key.removeprefix(f"{component(pipe)}."): factor for key, factor in other.tensors.items()}
    with Stack.of(patch).on(pipe):
        patched, before, drawn = fingerprint(pipe), outputs(model, names), torch.random.get_rng_state()
        with loaded(pipe, component(pipe), factors, 0.5):
            during = outputs(model, names)
            assert [one.state for one in applied(pipe)] == ["on"]
        assert fingerprint(pipe) == patched and not getattr(model, "_hf_peft_config_loaded", False)
        assert torch.equal(torch.random.get_rng_state(), drawn)
    assert fingerprint(pipe) == bare
    for name in names:
        torch.testing.assert_close(during[name] - before[name], alone[name] / 2, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("where", ["transformer", "text_encoder"])
def test_what_the_host_has_loaded_is_not_taken_off_with_it(where):
    pipe = pico.sd3()
    named = "to_q" if where == "transformer" else "q_proj"
    getattr(pipe, where).add_adapter(LoraConfig(r=2, target_modules=[named], init_lora_weights=False), "host")
    before = fingerprint(pipe)
    with pytest.raises(HotfixError, match="carries adapters: host"), loaded(pipe, "transformer", {}, 1.0):
        pass
    assert fingerprint(pipe) == before


@pytest.mark.parametrize("family", sorted(pico.FAMILIES))
def test_other_sizes_are_ones_that_the_network_takes(family):
    denoiser = Denoiser(pico.FAMILIES[family](), pico.CALLS[family])
    for size in (sizes := attack_noise.sizes_of(denoiser)):
        other = attack_noise.at_size(denoiser, size)
        x = attack_noise.noise(other, 1, 0)
        drawn = other.decode(other.denoise(x, 1.0, other.embed(["a" if other.captioned else ""]), steps=1))
        assert drawn.shape == (1, 3, *size)
    assert sizes and denoiser.size not in sizes


def test_distilling_brings_one_step_nearer_to_where_several_end(tmp_path, family, pipe):
    denoiser = Denoiser(pipe, pico.CALLS[family])
    case = prepare(make_recipe(tmp_path, family), denoiser)
    rows, null = denoiser.embed(case.retain_captions), denoiser.unguided

    def loss(seed: int) -> torch.Tensor:
        return distillation_loss(denoiser, adapter, case.x_r, rows, null, torch.Generator().manual_seed(seed))

    with lora.attached(denoiser.model, denoiser.targets, 4, 0) as adapter:
        held_out = loss(1).item()
        trained(adapter, lambda: loss(0), 40)
        assert loss(1).item() < 0.9 * held_out
