"""The node's own checks, on weights as ComfyUI keeps them: other names, q, k and v in one, halves swapped.

benchmarks/clients/comfyui.py does the same in the real server.
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pico
import pytest
import torch
from patching import component, denoiser, layers, random_patch

from hotfix.errors import BaseMismatch, StackError

SOURCE = Path(__file__).parents[1] / "integrations/comfyui/placing.py"
SPEC = importlib.util.spec_from_file_location("placing", SOURCE)
placing = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(placing)


def unchanged(weight, **_):
    return weight


def swapped(weight):
    return torch.cat(weight.chunk(2)[::-1])


def comfy(pipe, dtype=torch.float32):
    """The map of LoRA names and the rows of keys, as ComfyUI has them."""
    model, known, rows = denoiser(pipe), {}, {}
    for name in layers(model):
        weight, key = model.get_submodule(name).weight.detach().to(dtype), f"diffusion_model.{name}"
        if component(pipe) == "unet":
            known["lora_unet_" + name.replace(".", "_")] = key
        elif name.endswith((".to_q", ".to_k", ".to_v")):
            part, key, size = "qkv".index(name[-1]), key[:-4] + "qkv", len(weight)
            known[f"transformer.{name}"] = (key, (0, part * size, size))
            weight = torch.cat([rows[key][0][0] if key in rows else weight[:0], weight])
        elif name.endswith(".add_k_proj"):
            known[f"transformer.{name}"] = (key, None, swapped)
            weight = swapped(weight)
        else:
            known[f"transformer.{name}"] = key
        rows[key] = [(weight, unchanged)]
    return known, rows


def put(patch, places, rows, strength=1.0):
    """Changes as ModelPatcher keeps them."""
    changes = {}
    for at in places.values():
        key, what = at if isinstance(at, str) else at[0], SimpleNamespace(**{placing.MARK: patch})
        changes.setdefault(key, []).append((strength, what, 1.0, None, None))
        rows[key].append(changes[key][-1])
    return changes


@pytest.fixture(params=["sd15", "sd3"])
def pipe(request):
    return pico.HOSTS[request.param]()


@pytest.fixture
def patch(pipe):
    return random_patch(pipe, "a", 1)


def test_every_layer_is_found_with_the_weight_that_diffusers_has(pipe, patch):
    known, rows = comfy(pipe)
    [(_, places, apart)] = placing.place_all([patch], known, rows, {})
    assert sorted(places) == patch.layers
    assert apart < 1e-6
    for layer, at in places.items():
        assert torch.equal(placing.weight_at(rows, at), denoiser(pipe).get_submodule(layer.split(".", 1)[1]).weight)


def test_a_layer_that_comfyui_has_not_is_named_and_nothing_is_left_out(pipe, patch):
    known, rows = comfy(pipe)
    del known[next(name for name in known if name.endswith(("attn1_to_k", "attn.to_k")))]
    with pytest.raises(BaseMismatch, match=rf"lacks 1 of the {len(patch.layers)} layers of a 1.0.0: .*to_k$"):
        placing.place_all([patch], known, rows, {})


def test_a_name_that_leads_to_no_weight_is_no_place(pipe, patch):
    known, rows = comfy(pipe)
    del rows[next(at for at in known.values() if isinstance(at, str))]
    with pytest.raises(BaseMismatch, match="lacks 1 of"):
        placing.place_all([patch], known, rows, {})


def test_other_weights_are_refused_and_related_ones_only_when_allowed(pipe, patch):
    known, rows = comfy(pico.HOSTS["sd15" if component(pipe) == "unet" else "sd3"](seed=1))
    with pytest.raises(BaseMismatch, match="are others"):
        placing.place_all([patch], known, rows, {}, allow_related=True)
    known, rows = comfy(pipe)
    for key, [(weight, convert)] in rows.items():
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        rows[key] = [(weight + 0.1 * weight.std() * noise, convert)]
    with pytest.raises(BaseMismatch, match="like those, but differ"):
        placing.place_all([patch], known, rows, {})
    assert "unmeasured" in placing.describe(placing.place_all([patch], known, rows, {}, allow_related=True))


def test_weights_of_other_shapes_are_refused(pipe, patch):
    known, rows = comfy(pipe)
    key = next(at for at in known.values() if isinstance(at, str))
    rows[key] = [(rows[key][0][0].repeat_interleave(2, dim=1), unchanged)]
    with pytest.raises(BaseMismatch, match="holds a change of shape"):
        placing.place_all([patch], known, rows, {})


@pytest.mark.parametrize("change", [(1.0, [], 1.0, None, None), (0.5, ("diff", ()), 0.5, None, None)])
def test_merged_weights_are_refused(pipe, patch, change):
    known, rows = comfy(pipe)
    next(iter(rows.values())).append(change)
    with pytest.raises(BaseMismatch, match="merged"):
        placing.place_all([patch], known, rows, {}, allow_related=True)


def test_a_change_that_would_drown_in_the_weights_is_refused(pipe):
    small, large = (random_patch(pipe, "a", 1, size=size) for size in (1e-3, 0.5))
    known, rows = comfy(pipe, torch.bfloat16)
    placing.place_all([large], known, rows, {})
    with pytest.raises(StackError, match="would survive in bfloat16"):
        placing.place_all([small], known, rows, {})


def test_what_is_on_is_read_from_the_model(pipe, patch):
    known, rows = comfy(pipe)
    assert placing.carried({}) == {}
    changes = put(patch, placing.place(patch, known, rows), rows)
    assert placing.carried(changes) == {patch.id: patch}
    placing.place_all([patch], known, rows, {patch.id: patch})
    with pytest.raises(StackError, match="a is listed 2 times"):
        placing.place_all([patch, patch], known, rows, {patch.id: patch})


@pytest.mark.parametrize("strength, first", [(0.5, 0), (1.0, 1)])
def test_a_patch_that_is_on_in_part_is_an_error(pipe, patch, strength, first):
    known, rows = comfy(pipe)
    places = dict(list(placing.place(patch, known, rows).items())[first:])
    with pytest.raises(StackError, match=rf"of the {len(patch.layers)} layers of a 1.0.0 are on"):
        placing.carried(put(patch, places, rows, strength))


def test_all_problems_are_told_at_once_those_with_what_is_on_among_them(pipe, patch):
    known, rows = comfy(pipe)
    newer = random_patch(pipe, "a", 2, version="2.0.0", requires=["b"])
    for entry in [key for key in known if "ff" in key]:
        del known[entry]
    with pytest.raises(StackError, match=r"a is listed 2 times.*requires b.*lacks"):
        placing.place_all([newer], known, rows, {patch.id: patch})
