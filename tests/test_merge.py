"""Several patches as one: the same effect, in every reader, and a manifest that says what it stands for."""

import pico
import pytest
import torch
from hosts import draw
from patching import random_patch
from test_cli import assert_one_sentence

from hotfix.describe import UNKNOWN, describe
from hotfix.errors import StackError
from hotfix.manifest import Scope
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


@pytest.mark.parametrize(
    ("relations", "words"),
    [
        ({"requires": ["a>=2"]}, "b 1.0.0 requires a>=2"),
        ({"conflicts": ["a"]}, "b 1.0.0 conflicts with a"),
        ({"supersedes": ["a"]}, "b 1.0.0 supersedes a"),
    ],
)
def test_parts_that_could_not_be_in_one_stack_are_not_merged(relations, words):
    pipe = pico.ddpm()
    a, b = random_patch(pipe, "a", 1), random_patch(pipe, "b", 2, **relations)
    for parts in ([a, b], [b, a]):
        with pytest.raises(StackError, match=words):
            merge(parts, "whole", "1.0.0")


def test_what_parts_say_of_others_it_says_too_and_what_holds_among_them_it_does_not():
    pipe = pico.ddpm()
    said = {"requires": ["a>=1", "other>=2"], "conflicts": ["rival", "a>=2"], "supersedes": ["old<3"]}
    whole = merge([random_patch(pipe, "a", 1), random_patch(pipe, "b", 2, **said)], "whole", "1.0.0").manifest
    assert whole.requires == ["other>=2"] and whole.conflicts == ["a>=2", "rival"]
    assert whole.supersedes == ["a==1.0.0", "b==1.0.0", "old<3"]


def test_it_claims_to_be_measured_only_where_every_part_was_and_in_the_same_way():
    pipe = pico.ddpm()
    first, second, third = (random_patch(pipe, name, seed) for seed, name in enumerate("abc", 1))
    assert merge([first, with_scope(second, t_lo=0.7)], "whole", "1.0.0").manifest.scope == Scope(
        **first.manifest.scope.model_dump() | {"t_lo": 0.7}
    )
    for other in (None, {"height": 64}, {"call": {"guidance_scale": 9.0}}):
        part = with_scope(third, **other) if other else with_scope(third, None)
        for parts in ([first, part], [part, first], [first, second, part]):
            whole = merge(parts, "whole", "1.0.0")
            assert whole.manifest.scope is None and UNKNOWN in describe(whole)


def with_scope(patch, *none, **changes):
    scope = patch.manifest.scope.model_copy(update=changes) if not none else None
    return Patch(patch.manifest.model_copy(update={"scope": scope}).text(), patch.entries)


@pytest.mark.parametrize("taken", ["a-1.0.0", "a-1.0", "old-2.0.0", "rival-1.0.0", "other-2.0.0"])
def test_a_merged_patch_never_speaks_of_itself(taken):
    pipe = pico.ddpm()
    said = {"requires": ["other>=2"], "conflicts": ["rival"], "supersedes": ["old<3"]}
    parts = [random_patch(pipe, "a", 1), random_patch(pipe, "b", 2, **said)]
    with pytest.raises(StackError, match="would speak of itself"):
        merge(parts, *taken.rsplit("-", 1))
    assert merge(parts, "a", "1.0.1").version == "1.0.1"


def test_merging_writes_over_nothing_else(tmp_path, inline):
    files = [random_patch(pico.ddpm(), name, seed).save(tmp_path) for seed, name in enumerate("abc", 1)]
    before = files[2].read_bytes()
    assert_one_sentence(inline("merge", *files[:2], "-o", "c-1.0.0.safetensors", cwd=tmp_path), "is there already")
    assert files[2].read_bytes() == before
    for _ in range(2):  # the very same again is no other
        done = inline("merge", *files[:2], "-o", "whole-1.0.0.safetensors", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
