"""On quantised weights a patch adds the effect that it has on the base's own, and comes off to the bit."""

import hosts
import pico
import pytest
import torch
from conftest import make_recipe
from hosts import draw
from patching import apart_from_surrogate, denoiser, random_patch
from torch import nn

from hotfix import patched_copy
from hotfix.building import build
from hotfix.denoiser import Denoiser
from hotfix.errors import BaseMismatch, HotfixError, StackError
from hotfix.need import weights
from hotfix.pipeline import load_pipeline
from hotfix.planning import plan
from hotfix.stack import Stack, applied
from hotfix.weights import dense

pytest.importorskip("torchao", reason="`make test` runs this file again with the quantisers on the path")


def torchao_8(model):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())


def torchao_4(model):
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16)), _divisible)


def _divisible(layer, name):
    return isinstance(layer, nn.Linear) and layer.in_features % 16 == 0


def bitsandbytes_8(model):
    import bitsandbytes as bnb

    def made(layer):
        new = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False)
        new.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        return new

    _swap(model, made)


def bitsandbytes_4(model):
    import bitsandbytes as bnb

    def made(layer):
        new = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, torch.float32, quant_type="nf4"
        )
        new.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        return new

    _swap(model, made)


def _swap(model, made):
    """As a loader does it, which quantises what it reads; these models are in memory already."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and ".attn" in name:
            new = made(layer)
            new.bias = layer.bias
            model.set_submodule(name, new.to("cpu"))


RELATED = [torchao_4, bitsandbytes_4]
WAYS = [torchao_8, bitsandbytes_8, *RELATED]
UNABLE = [hosts.fuse, hosts.unfuse, hosts.fuse_and_unload]  # the host itself, on these weights
FAMILIES = ["sd15", "sdxl", "sd3", "flux"]


def numbers(pipe):
    """What its layers multiply with."""
    layers = [layer for layer in denoiser(pipe).modules() if isinstance(layer, nn.Linear)]
    return torch.cat([dense(layer).flatten() for layer in layers])


@pytest.fixture(scope="module")
def effect():
    """family -> a patch, and what it changes in a picture of the base itself."""
    found = {}
    for family in FAMILIES:
        pipe = pico.HOSTS[family]()
        patch, bare = random_patch(pipe, "one", 1, size=0.5), draw(pipe, family)
        with Stack.of(patch).on(pipe):
            found[family] = patch, draw(pipe, family) - bare
    return found


@pytest.mark.parametrize("quantise", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_patch_has_its_effect_and_comes_off(family, quantise, effect):
    patch, wanted = effect[family]
    pipe, stack = pico.HOSTS[family](), Stack.of(patch)
    quantise(denoiser(pipe))
    original, bare = numbers(pipe), draw(pipe, family)
    related = quantise in RELATED
    if related:
        with pytest.raises(BaseMismatch, match="are like those, but differ"):
            stack.apply(pipe)
    with pytest.raises(StackError, match="the weights are quantised"):
        stack.apply(pipe, fold=True, allow_related_base=related)
    with pytest.raises(StackError, match="the weights are quantised"):
        patched_copy.fold(stack, pipe, torch.float32, allow_related_base=related)
    stack.apply(pipe, allow_related_base=related)
    found = draw(pipe, family) - bare
    assert (found - wanted).abs().mean() <= (0.4 if related else 0.05) * wanted.abs().mean()
    assert [(entry.state, entry.related) for entry in applied(pipe)] == [("on", related)]
    stack.remove(pipe)
    assert torch.equal(draw(pipe, family), bare) and torch.equal(numbers(pipe), original)


@pytest.mark.parametrize("action", [one for one in hosts.LORA if one not in UNABLE], ids=lambda action: action.__name__)
@pytest.mark.parametrize("quantise", [bitsandbytes_8, torchao_8], ids=lambda way: way.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_stays_on_whatever_the_host_does_with_its_own_adapters(family, quantise, action, effect, tmp_path):
    patch, wanted = effect[family]
    hosts.styles(family, tmp_path)

    def after(stack):
        pipe = pico.HOSTS[family]()
        quantise(denoiser(pipe))
        stack.apply(pipe)
        return hosts.after(action, pipe, family, tmp_path)[0]

    changed = after(Stack.of(patch)) - after(Stack())
    assert (changed - wanted).abs().mean() <= 0.3 * wanted.abs().mean()


@pytest.mark.parametrize("quantise", [torchao_8, bitsandbytes_8, torchao_4], ids=lambda way: way.__name__)
@pytest.mark.parametrize("family", ["sd15", "flux"])  # with convolutions, and with Linears first
def test_a_patch_is_built_on_them_and_they_come_back(family, quantise, tmp_path):
    pipe, recipe = pico.HOSTS[family](), make_recipe(tmp_path, family, steps=8)
    quantise(denoiser(pipe))
    original, taught = numbers(pipe), Denoiser(pipe, recipe.base.call)
    before = apart_from_surrogate(taught, tmp_path)
    patch = build(recipe, pipe, checkpoint=tmp_path)
    with Stack.of(patch).on(pipe):
        assert apart_from_surrogate(taught, tmp_path) < before
    assert torch.equal(numbers(pipe), original)
    assert plan(recipe, pipe).parameters == sum(tensor.numel() for tensor in patch.tensors.values())


def test_a_gradient_that_would_end_at_them_is_refused(tmp_path):
    """On some CPUs bitsandbytes packs four-bit weights anew for a kernel that autograd knows nothing of."""
    pipe, recipe = pico.sd3(), make_recipe(tmp_path, "sd3")
    bitsandbytes_4(denoiser(pipe))
    with pytest.raises(HotfixError, match="four-bit weights on a CPU"):
        build(recipe, pipe)


def test_a_recipe_asks_for_eight_bits_and_the_patch_is_for_the_whole_base_too(tmp_path):
    pico.sd3().save_pretrained(tmp_path / "base")
    recipe = make_recipe(tmp_path, "sd3", steps=8)
    base = recipe.base.model_copy(update={"pipeline": str(tmp_path / "base"), "bits": 8})
    recipe = recipe.model_copy(update={"base": base})
    few, whole = load_pipeline(recipe), load_pipeline(base.pipeline)
    assert weights(few) < weights(whole)
    patch = build(recipe, few)
    for pipe in (few, whole):
        taught = Denoiser(pipe, base.call)
        before = apart_from_surrogate(taught, tmp_path)
        with Stack.of(patch).on(pipe):
            assert apart_from_surrogate(taught, tmp_path) < before


def test_four_bits_are_refused_without_a_gpu(tmp_path):
    pico.sd3().save_pretrained(tmp_path)
    with pytest.raises(HotfixError, match="4 without a GPU"):
        load_pipeline(str(tmp_path), bits=4)
