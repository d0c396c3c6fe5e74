"""Targets: the fixed list in targets.toml, and the recipe of each, with hotfix's default settings."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.flags import real_flags, tiles
from hotfix.denoiser import Denoiser
from hotfix.errors import RecipeError
from hotfix.pictures import load, to_images
from hotfix.recipe import Recipe
from hotfix.shapes import Picture, Pictures

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("targets.toml")


@dataclass(frozen=True)
class Base:
    name: str
    call: Mapping[str, Any]
    pipeline: str = ""  # none: it was not given on the command line
    similarity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A picture to forget: exactly one of files, real, seed and picture says which."""

    base: str
    name: str
    captions: tuple[str, ...] = ()
    surrogate: str = "sdedit"
    tune: bool = False
    files: str = ""
    real: str = ""
    seed: int | None = None
    picture: int | None = None


def read(sources: Mapping[str, str], scorer: Path | None = None) -> tuple[dict[str, Base], list[Target]]:
    """Bases by name, and all targets.

    Args:
        sources: name of a base -> its pipeline, instead of the file's.
        scorer: the TorchScript file that recognises faces.
    """
    data = tomllib.loads(FILE.read_text())
    bases = {}
    for name, row in data["base"].items():
        if name in sources:
            row["pipeline"] = sources[name]
        if "similarity" in row and scorer is not None:
            row["similarity"]["path"] = str(scorer.resolve())
        bases[name] = Base(name, **row)
    rows = [Target(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}) for row in data["target"]]
    return bases, rows


def missing(base: Base) -> str:
    """Why nothing can be measured on this base; empty if it can."""
    if not base.pipeline:
        return f"no pipeline given (--{base.name} FOLDER)"
    if base.similarity and "path" not in base.similarity:
        return "no scorer given (--face-scorer FILE)"
    return ""


def real(base: Base, denoiser: Denoiser) -> tuple[list[str], Pictures] | None:
    """Names and pictures of the data set behind a base; None where there is none on this machine."""
    match base.name:
        case "flags":
            return real_flags()
        case "emoji":
            return tiles("emoji")
    files = sorted(Path(base.pipeline).glob("real/*.png"))
    return ([path.stem for path in files], load(files, denoiser.size)) if files else None


def recipe(target: Target, base: Base, denoiser: Denoiser, seed: int, folder: Path, train: Mapping[str, Any]) -> Recipe:
    """The recipe of a target: defaults, but for what is asked.

    Args:
        target: what to forget.
        base: what draws it.
        denoiser: of that base, unchanged.
        seed: of everything that is drawn.
        folder: where the forget picture is written, unless it is a file already.
        train: changes to [train].

    Raises:
        RecipeError: fewer pictures in the folder than the list names.
    """
    surrogate: dict[str, Any] = {"kind": target.surrogate}
    if target.files:
        forget = f"{target.files}/forget/*.png"
        surrogate = {"kind": "files", "images": [f"{target.files}/surrogate/*.png"]}
    elif target.picture is not None:
        files = sorted(Path(base.pipeline).resolve().glob("forget/*.png"))
        if len(files) < target.picture:
            raise RecipeError(f"{len(files)} pictures in forget/", wanted=str(target.picture), hint="add pictures")
        forget = str(files[target.picture - 1])
    else:
        path = folder / f"{target.base}-{target.name}.png"
        to_images(_picture(target, base, denoiser)[None])[0].save(path)
        forget = str(path)
    data = {
        "name": target.name,
        "base": {"pipeline": base.pipeline, "call": dict(base.call)},
        "forget": {"images": [forget], "captions": list(target.captions)},
        "surrogate": surrogate,
        "similarity": dict(base.similarity),
        "train": {"seed": seed} | dict(train),
    }
    return Recipe.parse(data, folder=ROOT, name=f"{target.base}/{target.name}")


def _picture(target: Target, base: Base, denoiser: Denoiser) -> Picture:
    if target.seed is not None:
        return denoiser.draw([""], [target.seed])[0]
    known = real(base, denoiser)
    assert known is not None, f"{target.name} is named after a data set that is not here"
    names, pictures = known
    return pictures[names.index(target.real)]
