"""A recipe is checked whole, and every refusal names the key."""

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


def test_a_new_recipe_loads_and_says_what_the_defaults_are(tmp_path):
    """The template documents every key, with its default, so the two cannot drift apart."""
    loaded = Recipe.load(start("my-patch", tmp_path)).model_dump()
    default = Recipe.parse(LEAST).model_dump()
    assert set(loaded) == set(default)
    for section in ("similarity", "retain", "train", "budget"):
        assert loaded[section] == default[section]


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


@pytest.mark.parametrize(("text", "words"), [(b"name = ", "not TOML"), (b"\xff\xfe", "not UTF-8")])
def test_a_file_that_is_no_recipe(tmp_path, text, words):
    (tmp_path / "recipe.toml").write_bytes(text)
    with pytest.raises(RecipeError, match=words):
        Recipe.load(tmp_path / "recipe.toml")
