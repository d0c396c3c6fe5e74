"""What a recipe says for nothing, or against itself: every key is of a kind that may be, but not beside the others."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotfix.recipe import Recipe, Similarity, Surrogate


def found(recipe: "Recipe") -> Iterator[tuple[str, str]]:
    """Sentences, each with a hint."""
    yield from _surrogate(recipe.surrogate)
    yield from _similarity(recipe.similarity)
    if recipe.forget.scope == "caption" and not recipe.forget.captions:
        hint = 'name the captions it shall act under, or say scope = "any"'
        yield "forget.scope is caption, but forget.captions is empty", hint
    low, high = recipe.train.window
    if low >= high:
        yield f"train.window begins at {low}, but ends at {high}", "the lower noise level comes first: [0.25, 0.75]"


def _surrogate(said: "Surrogate") -> Iterator[tuple[str, str]]:
    """A key that only one kind reads, under another."""
    given = {"images": ("files", said.images), "mask": ("inpaint", said.mask), "editor": ("editor", said.editor)}
    for key, (kind, value) in given.items():
        if value and said.kind != kind:
            hint = f'say kind = "{kind}", or leave surrogate.{key} out'
            yield f"surrogate.{key} is given, but surrogate.kind is {said.kind}, which does not read it", hint
    if said.kind == "files" and not said.images:
        hint = 'name the replacement pictures, or say kind = "sdedit" and the base edits the picture itself'
        yield "surrogate.kind is files, but surrogate.images is empty", hint
    if said.kind == "editor" and said.editor is None:
        hint = 'name its pipeline and call: editor = { pipeline = "…", revision = "…", call = { prompt = "…" } }'
        yield "surrogate.kind is editor, but there is no [surrogate.editor]", hint


def _similarity(said: "Similarity") -> Iterator[tuple[str, str]]:
    if said.kind in ("sscd", "face", "features") and not said.path:
        hint = "name the file or folder of the network; nothing is downloaded"
        yield f"similarity.kind is {said.kind}, but similarity.path is empty", hint
    if said.kind == "pixel" and said.path:
        hint = 'say what the network is, kind = "sscd", "face" or "features", or leave similarity.path out'
        yield "similarity.path is given, but similarity.kind is pixel, which asks no network", hint
    for key, numbers in {"size": said.size, "mean": said.mean, "std": said.std}.items():
        if numbers and said.kind not in ("sscd", "face"):
            hint = f"leave similarity.{key} out"
            yield f"similarity.{key} is given, but similarity.kind is {said.kind}, which does not read it", hint
    for key, channels in {"mean": said.mean, "std": said.std}.items():
        if len(channels) not in (0, 1, 3):
            yield (
                f"similarity.{key} holds {len(channels)} numbers, but a picture has 3 channels",
                "give one number, or three",
            )
