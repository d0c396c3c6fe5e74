"""Every family is the pipeline itself: the same pictures, the same prediction, and patches that do what they say."""

from dataclasses import replace

import diffusers
import pico
import pytest
import torch
from conftest import make_recipe
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from patching import apart_from_surrogate, random_patch

from hotfix import captions
from hotfix.building import build
from hotfix.demo import fingerprint
from hotfix.denoiser import Denoiser
from hotfix.errors import RecipeError, UnknownFamily
from hotfix.families import FAMILIES
from hotfix.pipeline import load_pipeline
from hotfix.stack import Stack


@pytest.fixture(params=pico.FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def pipe(family):
    return pico.FAMILIES[family]()


@pytest.fixture
def denoiser(pipe, family):
    return Denoiser(pipe, pico.CALLS[family])


def test_every_family_is_tried():
    assert {type(make()).__name__ for make in pico.FAMILIES.values()} == set(FAMILIES)


@pytest.mark.parametrize("family", sorted(pico.FAMILIES.keys() - {"ddpm"}))  # whose every step draws noise
def test_endpoints_of_the_schedulers_steps_are_what_the_pipeline_draws(denoiser):
    """Encoders, guidance, schedule, prediction and decoder at once: any that differed would change the picture."""
    pipe, said = denoiser.pipe, ["a", "b"]
    drawn = denoiser.draw(said, [0, 1])
    shape = (1, *denoiser.latent_shape)
    x = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    rows, none = denoiser.embed(said), denoiser.unguided
    none = {key: value.expand(2, *value.shape[1:]) for key, value in none.items()}
    scheduler = pipe.scheduler  # as the pipeline left it
    for i, step in enumerate(scheduler.timesteps.tolist()):
        t = torch.full((2,), step / (1000 if denoiser.flow else 999))
        with torch.no_grad():
            x0 = denoiser.x_hat(x, t, rows)
            if denoiser.guidance != 1:
                bare = denoiser.x_hat(x, t, none)
                x0 = bare + denoiser.guidance * (x0 - bare)
        a, s = denoiser.schedule(t)
        eps = (x - a * x0) / s
        if denoiser.flow:
            s_then = scheduler.sigmas[i + 1]
            a_then = 1 - s_then
        else:
            then = step - 1000 // len(scheduler.timesteps)
            abar = scheduler.alphas_cumprod[then] if then >= 0 else scheduler.final_alpha_cumprod
            a_then, s_then = abar.sqrt(), (1 - abar).sqrt()
        x = a_then * x0 + s_then * eps
    torch.testing.assert_close(denoiser.decode(x), drawn, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", sorted(pico.FAMILIES.keys() - {"ddpm"}))  # which knows none
def test_captions_are_encoded_once_and_few_at_a_time(denoiser, monkeypatch):
    """The base's own prompts are hundreds: all at once they are more than a large text encoder has room for."""
    said = ["a", "b", "", "a", "b", "a"]
    alone = [denoiser.embed([caption]) for caption in said]
    asked, family = [], FAMILIES[denoiser.family]

    def noted(pipe, some, size, call):
        asked.append(some)
        return family.rows(pipe, some, size, call)

    monkeypatch.setattr(captions, "TOGETHER", 2 * sum(value.nbytes for value in alone[0].values()))
    rows = captions.encode(replace(family, rows=noted), denoiser.pipe, said, denoiser.size, denoiser.call)
    assert asked == [["a"], ["a", "b"], [""]]
    for key, value in rows.items():
        torch.testing.assert_close(value, torch.cat([row[key] for row in alone]))


def test_an_endpoint_error_is_the_error_of_what_the_network_predicts(denoiser):
    """method.md, equation 2: w_t |x_hat - x|² = s_t² |out - true out|², whatever it puts out."""
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn((3, *denoiser.latent_shape), generator=generator) for _ in range(2))
    t = torch.tensor([0.2, 0.5, 0.8])
    a, s = denoiser.schedule(t)
    rows = denoiser.embed(["a", "b", ""])
    with torch.no_grad():
        out = denoiser.predict(denoiser.noised(x, t, eps), t, rows)
        x_hat = denoiser.x_hat(denoiser.noised(x, t, eps), t, rows)
    kind = "flow" if denoiser.flow else denoiser.pipe.scheduler.config.prediction_type
    true = {"epsilon": eps, "v_prediction": a * eps - s * x, "flow": eps - x}[kind]
    endpoint = denoiser.weight(t) * (x_hat - x).square().flatten(1).mean(1)
    torch.testing.assert_close(endpoint, s.flatten() ** 2 * (out - true).square().flatten(1).mean(1))


@pytest.mark.parametrize("family", sorted(pico.FAMILIES.keys() - {"sd2"}))  # sd15 but for the prediction
def test_a_patch_is_built_acts_and_comes_off(family, tmp_path):
    pipe, recipe = pico.FAMILIES[family](), make_recipe(tmp_path, family, steps=8)
    denoiser = Denoiser(pipe, recipe.base.call)
    original, bare = fingerprint(pipe), denoiser.draw(["a"], [0])
    patch = build(recipe, pipe)
    before = apart_from_surrogate(denoiser, tmp_path)
    with Stack.of(patch).on(pipe):
        assert apart_from_surrogate(denoiser, tmp_path) < before
        patched = denoiser.draw(["a"], [0])
    assert not torch.equal(patched, bare)
    assert torch.equal(denoiser.draw(["a"], [0]), bare) and fingerprint(pipe) == original
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(patch.save(tmp_path))
        torch.testing.assert_close(denoiser.draw(["a"], [0]), patched, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
def test_pipelines_around_the_same_network_take_its_patch(kind):
    made = pico.sd15()
    patch = random_patch(made, "one", 1)
    pipe = kind(**made.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    picture = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    mask = {"mask_image": torch.ones(1, 1, 16, 16)} if "Inpaint" in kind.__name__ else {}

    def edit():
        draw = torch.Generator().manual_seed(0)
        call = {"prompt": "a", "image": picture, "generator": draw, "output_type": "pt", "num_inference_steps": 4}
        return pipe(**call, **mask).images

    bare = edit()
    with Stack.of(patch).on(pipe):
        assert not torch.equal(edit(), bare)
    assert torch.equal(edit(), bare)


def test_a_base_in_half_precision_is_learned_on_in_float32(tmp_path):
    pico.sd3().save_pretrained(tmp_path / "base")
    recipe = make_recipe(tmp_path, "sd3", steps=20)
    base = recipe.base.model_copy(update={"pipeline": str(tmp_path / "base"), "dtype": "bfloat16"})
    recipe = recipe.model_copy(update={"base": base})
    pipe = load_pipeline(recipe)
    denoiser = Denoiser(pipe, recipe.base.call)
    assert denoiser.dtype == torch.bfloat16
    original, patch = fingerprint(pipe), build(recipe, pipe)
    assert {tensor.dtype for tensor in patch.tensors.values()} == {torch.float32}
    assert fingerprint(pipe) == original
    pipe.to(torch.float32)  # in bfloat16 the network's own rounding is larger than what so few steps change
    before = apart_from_surrogate(denoiser, tmp_path)
    with Stack.of(patch).on(pipe):
        assert apart_from_surrogate(denoiser, tmp_path) < before


def test_a_video_model_takes_a_patch_and_gives_it_back():
    pipe = pico.wan()
    patch, original = random_patch(pipe, "one", 1), fingerprint(pipe)

    def clip():
        draw = torch.Generator().manual_seed(0)
        size = {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 4}
        return pipe("a", generator=draw, output_type="pt", num_inference_steps=2, **size).frames

    bare = clip()
    with Stack.of(patch).on(pipe):
        assert not torch.equal(clip(), bare)
    assert torch.equal(clip(), bare) and fingerprint(pipe) == original


def test_a_network_that_was_distilled_to_consistency_is_refused():
    pipe = pico.sd15()
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(UnknownFamily, match="consistency"):
        Denoiser(pipe, {})


def test_a_flow_that_was_distilled_to_four_steps_is_told_no_guidance():
    pipe = pico.flux(guidance_embeds=False)
    denoiser = Denoiser(pipe, pico.CALLS["flux"])
    assert "guidance" not in denoiser.embed([""]) and denoiser.guidance == 1
    assert denoiser.draw(["a"], [0]).shape == (1, 3, 16, 16)


def test_a_distilled_klein_is_asked_once():
    denoiser = Denoiser(pico.klein(is_distilled=True), pico.CALLS["klein"])
    assert denoiser.guidance == 1 < Denoiser(pico.klein(), pico.CALLS["klein"]).guidance


def test_a_caption_that_is_no_class_is_refused_with_one_that_is():
    with pytest.raises(RecipeError, match="such as 'a'"):
        Denoiser(pico.dit(), {}).embed(["dog"])


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "IPNDMScheduler"])
def test_a_scheduler_of_neither_kind_of_noise_is_refused_by_its_name(name):
    pipe = pico.sdxl()
    pipe.scheduler = getattr(diffusers, name)()
    with pytest.raises(UnknownFamily, match=name):
        Denoiser(pipe, {})
