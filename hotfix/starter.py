"""`hotfix new`: a recipe with every key explained, to be edited and not to be read twice."""

from importlib.resources import files
from pathlib import Path

from hotfix.container import write_atomically
from hotfix.errors import RecipeError
from hotfix.recipe import Recipe


def start(name: str, folder: Path = Path("patches")) -> Path:
    """Write `patches/NAME/recipe.toml` and the two empty picture folders beside it.

    Raises:
        RecipeError: a name that no patch may have, or a recipe that is there already.
    """
    path = folder / name / "recipe.toml"
    if path.exists():
        raise RecipeError(f"{path} is there already", hint=f"edit it, or remove it and say hotfix new {name} again")
    Recipe.parse(
        {"name": name, "base": {"pipeline": "hotfix:flags"}, "forget": {"images": ["forget/*.png"]}}, name=name
    )
    text = (files("hotfix") / "templates" / "recipe.toml").read_text(encoding="utf-8").replace("NAME", name)
    write_atomically(path, text.encode())
    for kind in ("forget", "surrogate"):
        (path.parent / kind).mkdir(exist_ok=True)
    return path
