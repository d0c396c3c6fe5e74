"""The production call is checked against the pipeline before any work: what it does not take, or takes otherwise."""

import math
from inspect import signature
from types import SimpleNamespace

import pico
import pytest
import torch
from conftest import make_recipe

from hotfix import attack_noise
from hotfix.bank import bank_steps
from hotfix.building import build
from hotfix.denoiser import Denoiser
from hotfix.errors import RecipeError
from hotfix.planning import plan
from hotfix.production import SAID
from hotfix.scoring import score


@pytest.mark.parametrize("family", sorted(pico.FAMILIES))
def test_a_key_that_no_pipeline_takes_is_refused_and_the_nearest_is_named(family):
    """Stable Diffusion and others swallow whatever they do not know."""
    pipe = pico.FAMILIES[family]()
    with pytest.raises(RecipeError, match=f"a {type(pipe).__name__} takes no such key") as caught:
        Denoiser(pipe, {"num_inference_step": 3})
    assert caught.value.hint == "did you mean 'num_inference_steps'?"


@pytest.mark.parametrize("key", sorted(SAID))
def test_what_hotfix_says_itself_is_not_for_the_recipe(key):
    with pytest.raises(RecipeError, match=f"base.call.{key} is what hotfix says itself"):
        Denoiser(pico.sdxl(), {key: "a"})


@pytest.mark.parametrize(
    ("family", "call", "words"),
    [
        ("sd15", {"guidance_scale": "high"}, "guidance_scale is 'high'; wanted a number"),
        ("sd15", {"guidance_scale": math.nan}, "guidance_scale is nan; wanted a number"),
        ("sd15", {"clip_skip": 1.5}, "clip_skip is 1.5; wanted a whole number"),
        ("sd15", {"negative_prompt": 3}, "negative_prompt is 3; wanted words"),
        ("sd15", {"latents": "mine.pt"}, "latents is 'mine.pt'; wanted nothing"),
        ("sd15", {"sigmas": 3.0}, "sigmas is 3.0; wanted nothing"),
        ("pixart", {"clean_caption": "no"}, "clean_caption is 'no'; wanted true or false"),
        ("pixart", {"clean_caption": 2}, "clean_caption is 2; wanted true or false"),
        ("sd3", {"height": 18}, "height is 18; wanted a multiple of 4 pixels"),
        ("sd3", {"width": 0}, "width is 0; wanted a multiple of 4 pixels"),
        ("sd3", {"height": 16.5}, "height is 16.5; wanted a whole number"),
        ("z_image", {"height": 17}, "height is 17; wanted a multiple of 2 pixels"),
        ("flux", {"height": 17, "width": 16}, "height is 17; wanted a multiple of 2 pixels"),
        ("qwen_image", {"width": 20}, "width is 20; wanted a multiple of 8 pixels"),
        ("klein", {"height": 17}, "height is 17; wanted a multiple of 2 pixels"),
        ("sana", {"height": 33}, "height is 33; wanted a multiple of 2 pixels"),
        ("dit", {"height": 16}, "a DiTPipeline takes no such key"),
    ],
)
def test_a_value_that_the_pipeline_cannot_use_is_refused_with_what_it_can(family, call, words):
    with pytest.raises(RecipeError, match=words):
        Denoiser(pico.FAMILIES[family](), call)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("sd15", {"negative_prompt": "b", "guidance_scale": 3, "eta": 0.5}),
        ("sdxl", {"height": 24, "width": 32}),
        ("sd3", {"height": 8, "width": 12, "negative_prompt": "b"}),
        ("pixart", {"clean_caption": 0, "height": 24}),  # as a recipe keeps false
        ("z_image", {"cfg_truncation": 1, "cfg_normalization": True}),
        ("qwen_image", {"true_cfg_scale": 2.0, "negative_prompt": "b"}),
    ],
)
def test_what_a_pipeline_takes_is_said_and_drawn(family, more):
    call = pico.CALLS[family] | more
    drawn = Denoiser(pico.FAMILIES[family](), call).draw(["a"], [0])
    assert drawn.shape[2:] == (call.get("height", 16), call.get("width", 16))


@pytest.mark.parametrize("family", sorted(pico.FAMILIES))
def test_a_negative_prompt_is_taken_beside_several_captions_and_counts(family):
    pipe, call = pico.FAMILIES[family](), pico.CALLS[family] | {"guidance_scale": 4.0}
    if "negative_prompt" not in signature(pipe.__call__).parameters:
        pytest.skip("it takes none")
    if "true_cfg_scale" in signature(pipe.__call__).parameters:
        call |= {"true_cfg_scale": 4.0}
    drawn = [Denoiser(pipe, call | {"negative_prompt": words}).draw(["a", "b"], [0, 1]) for words in ("b b", "a")]
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("work", [build, lambda recipe, pipe: score(pipe, recipe), plan])
def test_a_misspelt_call_ends_a_build_a_score_and_a_plan_before_anything_is_drawn(tmp_path, monkeypatch, work):
    recipe = make_recipe(tmp_path, "sd15")
    base = recipe.base.model_copy(update={"call": {"num_inference_steps": 3, "guidence_scale": 9.0}})
    monkeypatch.setattr(Denoiser, "denoise", None)
    with pytest.raises(RecipeError, match="guidence_scale"):
        work(recipe.model_copy(update={"base": base}), pico.sd15())


@pytest.mark.parametrize(
    ("family", "call", "steps", "scales"),
    [
        (
            "z_image",
            pico.CALLS["z_image"],
            [1, 6],
            [0.0, 5.0],
        ),  # 0 is none: 2 and nothing is 3, twice that 6, said as 5
        ("sd3", pico.CALLS["sd3"], [1, 6], [1.0, 4.0]),
        ("ddpm", {}, [500, 1000], []),  # its default is every level that there is
        ("sana", {}, [10, 40], [1.0, 9.0]),
        ("sd15", {}, [25, 100], [1.0, 15.0]),
    ],
)
def test_other_samplings_are_half_and_twice_of_what_the_pipeline_does(monkeypatch, family, call, steps, scales):
    ways = []

    def draw(denoiser, captions, seeds):
        ways.append(denoiser.call)
        return torch.zeros(len(seeds), 3, 16, 16)

    monkeypatch.setattr(Denoiser, "draw", draw)
    case = SimpleNamespace(captions=("a",))
    attack_noise.samplings(Denoiser(pico.FAMILIES[family](), call), case, None, 4, 0)
    assert [way["num_inference_steps"] for way in ways[:2]] == steps
    assert [way["guidance_scale"] for way in ways[2:]] == scales


@pytest.mark.parametrize(
    ("family", "call", "steps"), [("sana", {}, 20), ("sd15", {}, 25), ("sd15", {"num_inference_steps": 8}, 8)]
)
def test_what_must_stay_is_drawn_in_the_steps_of_the_production_call_up_to_a_limit(family, call, steps):
    assert bank_steps(Denoiser(pico.FAMILIES[family](), call)) == steps
