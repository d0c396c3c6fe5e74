"""Several patches as one: the same effect, in every reader, and a manifest that says what it stands for."""

import pico
import pytest
import torch
from hosts import draw
from patching import random_patch

from hotfix.errors import StackError
from hotfix.merge import merge
from hotfix.patch import A, B, Patch
from hotfix.stack import Stack, applied


@pytest.fixture(params=sorted(pico.HOSTS))
def family(request):
    return request.param


@pytest.fixture
def parts(family):
    pipe = pico.HOSTS[family]()
    return [random_patch(pipe, f"part-{seed}", seed, rank=seed + 1, every=seed) for seed in (1, 2, 3)]


def test_a_merged_patch_does_what_the_stack_does(family, parts):
    pipe, whole = pico.HOSTS[family](), merge(parts, "whole", "1.0.0")
    bare = draw(pipe, family)
    with Stack.of(*parts).on(pipe):
        wanted = draw(pipe, family)
    with Stack.of(whole).on(pipe):
        torch.testing.assert_close(draw(pipe, family), wanted, rtol=0, atol=1e-5)
    assert float((wanted - bare).abs().max()) > 1e-3


def test_it_holds_the_factors_of_its_parts_and_nothing_but_zeros_beside(parts):
    whole = merge(parts, "whole", "1.0.0")
    ranks = {tensor.shape[0] for name, tensor in whole.tensors.items() if name.endswith(A)}
    assert len(ranks) == 1, "readers of plain LoRA files know one rank"
    for layer in whole.layers:
        having = [part for part in parts if layer in part.layers]
        a = torch.cat([part.tensors[layer + A] for part in having])
        b = torch.cat([part.tensors[layer + B] for part in having], dim=1)
        assert torch.equal(whole.tensors[layer + A][: len(a)], a) and not whole.tensors[layer + A][len(a) :].any()
        assert torch.equal(whole.tensors[layer + B][:, : len(a)], b) and not whole.tensors[layer + B][:, len(a) :].any()


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux"])
def test_stock_diffusers_reads_it_alike(family, parts, tmp_path):
    pipe, whole = pico.HOSTS[family](), merge(parts, "whole", "1.0.0")
    with Stack.of(*parts).on(pipe):
        wanted = draw(pipe, family)
    pipe.load_lora_weights(whole.save(tmp_path))
    torch.testing.assert_close(draw(pipe, family), wanted, rtol=0, atol=1e-4)


def test_it_supersedes_its_parts_and_takes_their_place(family, parts, tmp_path):
    pipe, whole = pico.HOSTS[family](), Patch.load(merge(parts, "whole", "1.0.0").save(tmp_path))
    assert whole.manifest.supersedes == ["part-1==1.0.0", "part-2==1.0.0", "part-3==1.0.0"]
    assert len(whole.manifest.targets) == 3
    with pytest.raises(StackError, match=r"supersedes part-2==1\.0\.0, which is still listed"):
        Stack.of(parts[1], whole).check(pipe)
    Stack.of(*parts).apply(pipe)
    Stack.of(*parts).replace(pipe, Stack.of(whole))
    assert [entry.name for entry in applied(pipe)] == ["whole"]


def test_what_cannot_be_merged_is_refused_in_a_sentence(family, parts):
    other = random_patch(pico.HOSTS[family](seed=1), "other", 4)
    for patches, words in (
        ([], "nothing cannot be merged"),
        (parts[:1], "part-1 cannot be merged"),
        ([parts[0], parts[0]], "of different names"),
        ([parts[0], other], "patches of one base"),
    ):
        with pytest.raises(StackError, match=words):
            merge(patches, "whole", "1.0.0")
    for name, version in (("whole", "one"), ("../whole", "1.0.0")):
        with pytest.raises(StackError, match="a name of small letters"):
            merge(parts, name, version)
