"""A recipe is checked whole, and every refusal names the key."""

from pathlib import Path

import pytest

from hotfix.errors import RecipeError
from hotfix.recipe import Recipe
from hotfix.starter import start

LEAST = {"name": "a", "base": {"pipeline": "hotfix:flags"}, "forget": {"images": ["x.png"]}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "Not A Name"}, "name"),
        ({"requires": ["one two"]}, "requires.*one two.*patch name"),
        ({"requires": ["Mauritania-2017"]}, "requires.*Mauritania-2017.*patch name"),
        ({"conflicts": ["iraq_2008>=1"]}, "conflicts.*iraq_2008.*patch name"),
        ({"supersedes": ["a; python_version > '3'"]}, "supersedes.*python_version.*patch name"),
        ({"requires": ["a[extra]>=1"]}, "requires.*extra.*patch name"),
        ({"requires": ["x @ file:///home/bob/secret"]}, "requires.*patch name"),
        ({"version": "one"}, "not a version"),
        ({"trian": {"rank": 8}}, "trian: there is no such key"),
        ({"train": {"rnak": 8}}, "train.rnak: there is no such key"),
        ({"train": {"rank": 0}}, "train.rank"),
        ({"train": {"steps": "many"}}, "train.steps"),
        ({"forget": {}}, "forget.images: this key is missing"),
        ({"forget": {"images": []}}, "forget.images"),
        ({"base": {"pipeline": "acme/model", "revision": "main"}}, "base.revision"),
        (
            {"base": {"pipeline": "acme/model", "call": {"num_inference_steps": "many"}}},
            "base.call: .*'many'; wanted a whole",
        ),
        (
            {"base": {"pipeline": "acme/model", "call": {"num_inference_steps": 0}}},
            "base.call: .*num_inference_steps is 0",
        ),
        ({"surrogate": {"kind": "magic"}}, "surrogate.kind"),
        ({"surrogate": {"kind": "files"}}, "surrogate.images is empty"),
        ({"surrogate": {"images": ["s.png"]}}, "surrogate.images is given, but surrogate.kind is sdedit"),
        ({"surrogate": {"mask": "m.png"}}, "surrogate.mask is given, but surrogate.kind is sdedit"),
        ({"surrogate": {"editor": {"pipeline": "acme/editor"}}}, "surrogate.editor is given, but"),
        ({"surrogate": {"kind": "editor"}}, "there is no .surrogate.editor"),
        ({"similarity": {"path": "net.pt"}}, "similarity.path is given, but similarity.kind is pixel"),
        ({"similarity": {"kind": "features", "path": "f", "size": 64}}, "similarity.size is given, but"),
        ({"similarity": {"kind": "sscd", "path": "n.pt", "mean": [0.5, 0.5]}}, "similarity.mean holds 2 numbers"),
        ({"similarity": {"kind": "face", "path": "n.pt", "std": [0.5] * 4}}, "similarity.std holds 4 numbers"),
        ({"train": {"window": [0.75, 0.25]}}, "train.window begins at 0.75, but ends at 0.25"),
        ({"train": {"window": [0.5, 0.5]}}, "train.window begins at 0.5"),
        ({"train": {"window": [-0.1, 0.5]}}, "train.window"),
        ({"train": {"lr": float("inf")}}, "train.lr"),
        ({"train": {"retain_weight": float("nan")}}, "train.retain_weight"),
        ({"base": {"pipeline": "acme/model", "call": {"guidance_scale": float("inf")}}}, "base.call.guidance_scale"),
        ({"budget": {"return_rate": 0}}, "budget.return_rate"),
    ],
)
def test_every_mistake_is_named(change, words):
    with pytest.raises(RecipeError, match=words):
        Recipe.parse(LEAST | change)


def test_a_typo_gets_the_nearest_key_as_a_hint():
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(LEAST | {"train": {"rnak": 8}})
    assert "'rank'" in caught.value.hint


def test_all_mistakes_are_told_at_once():
    with pytest.raises(RecipeError, match=r"train\.rank.*budget\.drift|budget\.drift.*train\.rank"):
        Recipe.parse(LEAST | {"train": {"rank": 0}, "budget": {"drift": 7}})


def test_keys_that_contradict_each_other_are_told_at_once_too():
    wrong = LEAST | {"surrogate": {"mask": "m.png"}, "train": {"window": [0.9, 0.1]}}
    with pytest.raises(RecipeError, match=r"surrogate\.mask.*; train\.window") as caught:
        Recipe.parse(wrong)
    assert 'kind = "inpaint"' in caught.value.hint and "[0.25, 0.75]" in caught.value.hint


@pytest.mark.parametrize("pattern", ["", ".", "a**", "nobody.png"])
def test_a_pattern_that_is_none_matches_nothing(tmp_path, pattern):
    recipe = Recipe.parse(LEAST | {"forget": {"images": [pattern]}}, folder=tmp_path)
    with pytest.raises(RecipeError, match=r"forget\.images: nothing matches"):
        recipe.pictures()


def test_a_picture_that_two_patterns_match_is_there_once_in_the_order_of_the_patterns(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").touch()
    recipe = Recipe.parse(LEAST | {"forget": {"images": ["b.png", "*.png", "./a.png"]}}, folder=tmp_path)
    assert [path.name for path in recipe.pictures()["forget.images"]] == ["b.png", "a.png", "c.png"]


def test_one_surrogate_may_be_named_for_several_pictures(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").touch()
    files = {"kind": "files", "images": ["a.png", "b.png", "a.png"]}
    recipe = Recipe.parse(LEAST | {"forget": {"images": ["*.png"]}, "surrogate": files}, folder=tmp_path)
    assert [path.name for path in recipe.pictures()["surrogate.images"]] == ["a.png", "b.png", "a.png"]


def test_a_new_recipe_loads_and_says_what_the_defaults_are(tmp_path):
    """The template documents every key, with its default, so the two cannot drift apart."""
    loaded = Recipe.load(start("my-patch", tmp_path)).model_dump()
    default = Recipe.parse(LEAST).model_dump()
    assert set(loaded) == set(default)
    for section in ("similarity", "retain", "train", "budget"):
        assert loaded[section] == default[section]


@pytest.mark.parametrize("name", ["My Patch", "faces_42", "-faces", ""])
def test_a_name_that_no_patch_may_have_is_shown_with_what_a_name_is(name, tmp_path):
    with pytest.raises(RecipeError, match=f"wanted small letters and digits.*found {name!r}"):
        start(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_by_new(tmp_path):
    start("my-patch", tmp_path)
    with pytest.raises(RecipeError, match="there already"):
        start("my-patch", tmp_path)


def test_the_public_recipe_holds_no_path_of_this_machine(tmp_path):
    (tmp_path / "john-doe.png").touch()
    recipe = Recipe.parse(
        LEAST | {"base": {"pipeline": str(tmp_path)}, "forget": {"images": ["john-doe.png"]}}, folder=tmp_path
    )
    assert str(tmp_path.parent) not in str(recipe.public())
    assert "john-doe" not in str(recipe.public())


@pytest.mark.parametrize(
    "folder", ["{here}", "{here}/gone", "/home/alice/model", "~/alice/model", "./alice/model", "."]
)
def test_of_the_folder_of_a_base_or_an_editor_only_the_name_is_public(tmp_path, folder):
    where = folder.format(here=tmp_path)
    surrogate = {"kind": "editor", "editor": {"pipeline": where}}
    public = Recipe.parse(LEAST | {"base": {"pipeline": where}, "surrogate": surrogate}).public()
    assert public["base"]["pipeline"] == public["surrogate"]["editor"]["pipeline"] == Path(where).absolute().name
    assert str(tmp_path.parent) not in str(public) and "alice" not in str(public)


@pytest.mark.parametrize("name", ["hotfix:flags", "acme/model"])
def test_the_name_of_a_published_pipeline_stays(name):
    surrogate = {"kind": "editor", "editor": {"pipeline": name}}
    public = Recipe.parse(LEAST | {"base": {"pipeline": name}, "surrogate": surrogate}).public()
    assert public["base"]["pipeline"] == public["surrogate"]["editor"]["pipeline"] == name


@pytest.mark.parametrize(("text", "words"), [(b"name = ", "not TOML"), (b"\xff\xfe", "not UTF-8")])
def test_a_file_that_is_no_recipe(tmp_path, text, words):
    (tmp_path / "recipe.toml").write_bytes(text)
    with pytest.raises(RecipeError, match=words):
        Recipe.load(tmp_path / "recipe.toml")
