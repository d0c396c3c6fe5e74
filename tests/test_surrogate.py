"""Surrogates: near the forget picture, no longer it, and made by nothing but the base or the editor that was named."""

from dataclasses import replace

import pico
import pytest
import torch
from atlas import tiles
from conftest import make_recipe, picture
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from hotfix import inpaint, surrogate
from hotfix.building import build
from hotfix.case import prepare
from hotfix.denoiser import Denoiser
from hotfix.editor import edit
from hotfix.errors import RecipeError
from hotfix.gate import Gate, error
from hotfix.pictures import from_image
from hotfix.pipeline import load_pipeline
from hotfix.recipe import Editor, Recipe
from hotfix.similarity import pixel


@pytest.fixture
def denoiser(family, pipe):
    return Denoiser(pipe, pico.CALLS[family])


def recipe_of_kind(folder, family, **surrogate):
    recipe = make_recipe(folder, family)
    data = recipe.model_dump() | {"surrogate": {"count": 3} | surrogate}
    return Recipe.parse(data, folder=folder)


@pytest.mark.parametrize("kind", ["sdedit", "nearest", "posterior", "latent"])
def test_the_base_makes_its_own_surrogates(tmp_path, family, denoiser, kind):
    (target,) = prepare(recipe_of_kind(tmp_path, family, kind=kind), denoiser).targets
    assert 1 <= len(target.surrogates) <= 3
    assert not target.returned(target.surrogates).any()


def test_denoising_with_a_mask_keeps_what_is_outside(denoiser):
    known = torch.randn(1, *denoiser.latent_shape)
    mask = torch.zeros(1, 1, *known.shape[-2:])
    mask[..., :8, :] = 1
    rows = denoiser.embed(["a"] * 2)
    x_t = denoiser.noised(known, torch.full((2,), 0.8), torch.randn(2, *known.shape[1:]))
    drawn = denoiser.denoise(x_t, 0.8, rows, steps=3, keep=(known, mask))
    assert torch.equal(drawn[:, :, 8:], known.expand(2, -1, -1, -1)[:, :, 8:])
    assert not torch.allclose(drawn[:, :, :8], known.expand(2, -1, -1, -1)[:, :, :8], atol=0.1)
    free = denoiser.denoise(x_t, 0.8, rows, steps=3)
    assert torch.equal(denoiser.denoise(x_t, 0.8, rows, steps=3, keep=(known, torch.ones_like(mask))), free)


def test_an_inpainted_surrogate_is_the_picture_but_for_the_mask(tmp_path):
    mask = torch.zeros(pico.SIDE, pico.SIDE)
    mask[4:12, 4:12] = 1
    Image.fromarray((255 * mask).byte().numpy()).save(tmp_path / "mask.png")
    recipe = recipe_of_kind(tmp_path, "ddpm", kind="inpaint", mask="mask.png")
    (target,) = prepare(recipe, Denoiser(pico.ddpm(), pico.CALLS["ddpm"])).targets
    assert (target.surrogates - target.picture)[:, :, mask == 0].abs().max() < 1e-5
    assert not target.returned(target.surrogates).any()
    assert recipe.public()["surrogate"]["mask"] == ""


def test_the_mask_is_where_the_neighbours_look_otherwise():
    """At almost no noise any base brings the picture back, so only the neighbours decide: one corner of it."""
    x = from_image(picture(1))
    neighbours = x.expand(8, -1, -1, -1).clone()
    neighbours[:, :, 2:6, 9:13] = -x[:, 2:6, 9:13]
    mask = inpaint.region(Denoiser(pico.ddpm(), {}), x, neighbours, pixel(x)(neighbours), t=0.01, seed=0)
    wanted = torch.zeros(16, 16)
    wanted[1:7, 8:14] = 1
    assert torch.equal(mask, wanted)


def test_a_mask_without_white_is_refused(tmp_path, family, denoiser):
    Image.new("L", (pico.SIDE, pico.SIDE)).save(tmp_path / "mask.png")
    with pytest.raises(RecipeError, match="no white"):
        prepare(recipe_of_kind(tmp_path, family, kind="inpaint", mask="mask.png"), denoiser)


def editor_pipeline():
    """A real instruct-style editor with random weights."""
    torch.manual_seed(0)
    sd3 = pico.sd3()
    text = CLIPTextConfig(
        vocab_size=6, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=8, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=16
    )  # fmt: skip
    return StableDiffusionInstructPix2PixPipeline(
        vae=vae.eval(), text_encoder=CLIPTextModel(text).eval(), tokenizer=sd3.tokenizer, unet=unet.eval(),
        scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def editor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("editor")
    editor_pipeline().save_pretrained(folder)
    return folder


def edits(folder, limit=0.99, **call):
    asked = Editor(pipeline=str(folder), call={"prompt": "a", "num_inference_steps": 2} | call)
    x = from_image(picture(1))
    return x, edit(asked, x, Gate(pixel(x), limit), 3, seed=0).pictures


def test_an_editing_pipeline_makes_surrogates_the_nearest_first(editor):
    x, found = edits(editor)
    assert found.shape == (3, *x.shape)
    assert pixel(x)(found).diff().max() <= 0
    torch.testing.assert_close(edits(editor)[1], found)


@pytest.mark.parametrize(
    ("call", "limit", "words"),
    [({"guidance_scale": "high"}, 0.99, "cannot be called so"), ({}, 0.1, "none of 6 edits can stand in")],
)
def test_an_editor_that_fails_ends_in_a_sentence(editor, call, limit, words):
    with pytest.raises(RecipeError, match=words):
        edits(editor, limit, **call)


def test_an_editor_must_be_named(tmp_path, family):
    with pytest.raises(RecipeError, match=r"no \[surrogate.editor\]"):
        recipe_of_kind(tmp_path, family, kind="editor")


# The gate


@pytest.fixture(scope="module")
def emoji():
    """The bundled emoji base, and real emoji that it was trained on."""
    return Denoiser(load_pipeline("hotfix:emoji"), {}), tiles("emoji")[1]


def shuffled(pictures):
    """The same pixels in another order: as unlike any picture as can be, with the same colours and contrast."""
    order = torch.randperm(pictures[0, 0].numel(), generator=torch.Generator().manual_seed(0))
    return pictures.flatten(2)[..., order].reshape(pictures.shape)


def test_the_gate_takes_pictures_that_the_base_knows_and_refuses_noise_and_seams(emoji):
    denoiser, real = emoji
    bank, good = real[:200:10], real[205:305:10]
    seamed = good.clone()
    seamed[:, :, 8:24:2] = -good[:, :, 8:24:2]
    gate = Gate.of(denoiser, real[400], bank, pixel(real[400]), 0.999, seed=0)
    assert gate.passes(good).float().mean() >= 0.8
    assert not gate.passes(shuffled(good)).any()
    assert gate.passes(seamed).float().mean() <= 0.2
    assert gate.passes(real[400:401] + 0.1).all()  # no less likely than x_f itself
    assert not gate.passes(real[400:401]).any()  # and yet not x_f


def test_the_error_of_a_picture_does_not_depend_on_its_neighbours(denoiser):
    x = torch.stack([from_image(picture(i)) for i in range(3)])
    torch.testing.assert_close(error(denoiser, x, seed=0)[2:], error(denoiser, x[2:], seed=0))


def a_gate():
    """Grey levels stand for pictures: the target is white, and the base draws nothing below -0.5."""
    return Gate(lambda x: x.mean(dim=(1, 2, 3)), 0.8, lambda x: -x.mean(dim=(1, 2, 3)), 0.5)


def greys(*levels):
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 4, 4)


def test_the_nearest_edits_that_pass_are_taken_and_every_other_one_is_accounted_for():
    chosen = a_gate().choose(greys(0.9, 0.1, 0.7, -0.9, 0.8, 0.5, -0.4), 2, "edits", hint="")
    assert chosen.pictures[:, 0, 0, 0].tolist() == pytest.approx([0.7, 0.5])
    assert chosen.words == (
        "2 of 7 edits taken; 2 still too like the target (>= 0.800), 1 unlike anything that the base draws, "
        "2 farther from the target than those"
    )


def test_where_none_passes_the_sentence_says_why():
    with pytest.raises(
        RecipeError, match=r"none of 3 .*: 2 still too like the target \(>= 0.800\), 1 unlike"
    ) as refused:
        a_gate().choose(greys(0.9, 0.9, -0.9), 2, "edits", hint="do otherwise")
    assert refused.value.hint == "do otherwise"


def test_an_edit_that_is_another_forget_picture_is_refused_and_counted():
    gate = replace(a_gate(), others=((lambda x: 1 - (x.mean(dim=(1, 2, 3)) - 0.5).abs(), 0.95),))
    assert gate.strangers(greys(0.9, 0.5, 0.3)).tolist() == [False, False, True]
    chosen = gate.choose(greys(0.9, 0.5, 0.3, -0.9), 2, "edits", hint="")
    assert chosen.pictures[:, 0, 0, 0].tolist() == pytest.approx([0.3])
    assert "1 another forget picture, 1 unlike" in chosen.words


@pytest.mark.parametrize("kind", ["sdedit", "nearest", "posterior", "latent"])
def test_of_several_targets_none_stands_in_for_another(tmp_path, family, denoiser, monkeypatch, kind):
    """Whatever edits the base makes: here the only one is the second target, and no stranger is less like the first."""
    recipe = recipe_of_kind(tmp_path, family, kind=kind)
    picture(2).save(tmp_path / "forget" / "two.png")
    (tmp_path / "mine").mkdir()
    for number in range(20, 60):
        picture(number).save(tmp_path / "mine" / f"{number}.png")
    recipe = recipe.model_copy(update={"retain": recipe.retain.model_copy(update={"images": ["mine/*.png"]})})

    def edits(*words):
        (gate,) = (word for word in words if isinstance(word, Gate))
        return gate.choose(from_image(picture(2))[None], 1, "edits", hint="")

    for name in ("sdedit", "nearest", "extrapolate"):
        monkeypatch.setattr(surrogate, name, edits)
    with pytest.raises(RecipeError, match="can stand in for the forget picture: 1 another forget picture"):
        prepare(recipe, denoiser)


def test_a_build_says_in_one_line_for_every_target_what_was_taken(tmp_path):
    recipe = recipe_of_kind(tmp_path, "sd3", kind="sdedit")
    picture(2).save(tmp_path / "forget" / "secret-name.png")
    said = []
    build(recipe, pico.sd3(), stage=said.append)
    lines = [words for words in said if words.startswith("surrogates of target")]
    assert [line.split(":")[0] for line in lines] == ["surrogates of target 1", "surrogates of target 2"]
    assert all("of 16 edits from noise level" in line and "taken" in line for line in lines)
    assert not any("secret-name" in words or ".png" in words for words in said)
