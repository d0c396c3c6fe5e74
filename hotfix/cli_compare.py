"""Two patches side by side."""

from pathlib import Path
from typing import Annotated

from hotfix import console
from hotfix.options import Json, Parameter, ShowForget, pipeline_of


def compare(
    pipeline: str,
    recipe: Path,
    a: Path,
    b: Path,
    *,
    seed: int = 0,
    n: Annotated[int, Parameter(name=["-n", "--n"], help="Pictures to draw for every rate.")] = 300,
    json: Json = False,
    html: Annotated[Path | None, Parameter(help="Write a page here, with pictures.")] = None,
    show_forget: ShowForget = False,
) -> None:
    """Two patches for one recipe, or two versions of one, on the same seeds: what comes back, and how far each drifts.

    Args:
        pipeline: hotfix:NAME, a folder, or a Hub id as ID@COMMIT.
        recipe: what both are to suppress.
        a: one patch.
        b: the other.
        seed: same seed, same numbers.
    """
    from hotfix.patch import Patch
    from hotfix.recipe import Recipe

    wanted = Recipe.load(recipe)
    wanted.pictures()
    first, second = Patch.load(a), Patch.load(b)
    pipe = pipeline_of(pipeline, like=wanted.base, draws=True)
    from hotfix import page
    from hotfix.comparing import compare as measure
    from hotfix.describe import beside
    from hotfix.page import Gallery
    from hotfix.report import HONEST

    gallery = Gallery(show_forget) if html else None
    found = measure(pipe, wanted, first, second, seed=seed, n=n, gallery=gallery, stage=console.say)
    console.data(found.model_dump(mode="json") | {"chance": found.chance}, beside(found), json)
    if html and gallery:
        title = " beside ".join(f"{patch.name} {patch.version}" for patch in (first, second))
        console.say(str(page.beside(title, beside(found).splitlines(), HONEST, html, gallery)))
