"""A similarity by a network: a TorchScript file, a saved vision model, or what another package offers."""

from dataclasses import replace

import pico
import pytest
import torch
from conftest import make_recipe, picture
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from hotfix import embedding
from hotfix.case import prepare
from hotfix.denoiser import Denoiser
from hotfix.errors import RecipeError
from hotfix.pictures import from_image
from hotfix.recipe import Recipe
from hotfix.replays import counted
from hotfix.similarity import UNDETECTED

SEEN = torch.stack([from_image(picture(seed)) for seed in range(6)])


@pytest.fixture
def torchscript(tmp_path):
    """A small convolutional embedder that wants pixels from 0 to 255."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    torch.jit.script(network).save(str(tmp_path / "embedder.ts"))
    return {"kind": "face", "path": "embedder.ts", "size": 24}


@pytest.fixture
def transformers(tmp_path):
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    CLIPVisionModel(config).save_pretrained(tmp_path / "vision")
    side = {"height": 16, "width": 16}
    CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False).save_pretrained(tmp_path / "vision")
    return {"kind": "features", "path": "vision"}


def recipe_with(folder, similarity, **more):
    data = make_recipe(folder, "ddpm").model_dump() | {"similarity": similarity} | more
    return Recipe.parse(data, folder=folder)


@pytest.mark.parametrize("kind", ["torchscript", "transformers"])
def test_a_picture_is_itself_and_each_is_judged_alone(tmp_path, kind, request):
    recipe = recipe_with(tmp_path, request.getfixturevalue(kind))
    embed = embedding.embedder(recipe.similarity, recipe.place(recipe.similarity.path))
    like = embedding.cosine(embed, SEEN[2])(SEEN)
    assert like.shape == (6,) and like.argmax() == 2
    torch.testing.assert_close(like[2], torch.tensor(1.0))
    alone = torch.cat([embedding.cosine(embed, SEEN[2])(one[None]) for one in SEEN])
    torch.testing.assert_close(like, alone)


@pytest.mark.parametrize("kind", ["torchscript", "transformers"])
def test_targets_are_recognised_by_the_network_of_the_recipe(tmp_path, kind, request):
    recipe = recipe_with(tmp_path, request.getfixturevalue(kind) | {"tau": 0.9999})
    (target,) = prepare(recipe, Denoiser(pico.ddpm(), pico.CALLS["ddpm"])).targets
    assert target.tau == 0.9999
    assert target.returned(torch.stack([target.picture, SEEN[4]])).tolist() == [True, False]
    assert "/" not in recipe.public()["similarity"]["path"]


@pytest.mark.parametrize(
    ("layers", "words", "hint"),
    [
        (
            [nn.Flatten(), nn.Linear(3 * 16 * 16, 4)],
            "takes no such pictures: .*shapes cannot be multiplied",
            "similarity.size",
        ),
        ([nn.Conv2d(3, 4, 3)], r"makes \(1, 4, 22, 22\) of one picture; wanted one row", "pooled"),
    ],
)
def test_a_network_of_other_pictures_or_of_no_embeddings_is_refused_before_training(tmp_path, layers, words, hint):
    torch.jit.script(nn.Sequential(*layers)).save(str(tmp_path / "other.ts"))
    recipe = recipe_with(tmp_path, {"kind": "face", "path": "other.ts", "size": 24})
    with pytest.raises(RecipeError, match=words) as found:
        prepare(recipe, Denoiser(pico.ddpm(), pico.CALLS["ddpm"]))
    assert hint in str(found.value.hint)


def test_pixels_reach_a_torchscript_network_as_the_recipe_says(tmp_path):
    torch.jit.script(nn.Flatten()).save(str(tmp_path / "as-is.ts"))
    embed = embedding.fed(embedding.network(tmp_path / "as-is.ts"), 16, (0.0,), (1 / 255,))
    torch.testing.assert_close(embed(SEEN).reshape_as(SEEN), (SEEN + 1) * 127.5, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("similarity", "words"),
    [
        ({"kind": "face"}, "similarity.path is empty"),
        ({"kind": "sscd", "path": "nothing.ts"}, "'sscd' cannot be loaded"),
        ({"kind": "sscd", "path": "recipe.txt"}, "'sscd' cannot be loaded"),
        ({"kind": "features", "path": "nothing"}, "'features' cannot be loaded"),
        ({"kind": "nothing"}, "no installed package offers 'nothing'"),
    ],
)
def test_a_network_that_is_not_there_ends_in_a_sentence(tmp_path, similarity, words):
    (tmp_path / "recipe.txt").write_text("no network")
    with pytest.raises(RecipeError, match=words):
        prepare(recipe_with(tmp_path, similarity), Denoiser(pico.ddpm(), pico.CALLS["ddpm"]))


def test_a_picture_in_which_the_network_finds_nothing_is_as_unlike_as_can_be_and_is_counted(tmp_path):
    def sees(pictures):
        seen = pictures.mean(dim=(2, 3)) + 2
        return torch.where((pictures[:, :1, 0, 0] > 0).expand_as(seen), torch.nan, seen)

    hidden, shown = SEEN.clone(), SEEN.clone()
    hidden[:, 0, 0, 0], shown[:, 0, 0, 0] = 1, -1
    like = embedding.cosine(sees, shown[0])
    assert (like(hidden) == UNDETECTED).all() and (like(shown) > 0).all()
    (target,) = (case := prepare(make_recipe(tmp_path, "ddpm"), Denoiser(pico.ddpm(), pico.CALLS["ddpm"]))).targets
    case = replace(case, targets=(replace(target, similarity=like, tau=0.9),))
    drawn = torch.cat([hidden[:2], shown[:1]])
    assert case.alike(drawn).all(), "what nothing can be said of is not shown, either"
    rates = counted(case, "own", shown[:3], drawn, 0, lambda x: x.mean(dim=(1, 2, 3)) < 2, embedded=True)
    assert (rates.undetected_before.k, rates.undetected.k, rates.after.k) == (0, 2, 1)
    with pytest.raises(RecipeError, match="finds nothing in a forget picture"):
        embedding.cosine(sees, hidden[0])


def test_a_plugin_is_found_by_its_entry_point(tmp_path, monkeypatch):
    package = tmp_path / "site"
    (package / "brightness-1.dist-info").mkdir(parents=True)
    (package / "brightness-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: brightness\nVersion: 1\n"
    )
    (package / "brightness-1.dist-info" / "entry_points.txt").write_text(
        "[hotfix.embedders]\nbrightness = brightness:embedder\n"
    )
    (package / "brightness.py").write_text(
        "def embedder(path):\n    return lambda pictures: pictures.mean(dim=(2, 3)) + 1\n"
    )
    monkeypatch.syspath_prepend(str(package))
    recipe = recipe_with(tmp_path, {"kind": "brightness"})
    embed = embedding.embedder(recipe.similarity, recipe.place(""))
    torch.testing.assert_close(embed(SEEN), SEEN.mean(dim=(2, 3)) + 1)
