"""What several verbs take."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from hotfix import console
from hotfix.errors import HotfixError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from hotfix.recipe import Base

Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON instead of text.")]
Out = Annotated[Path, Parameter(name=["-o", "--out"], help="Folder to write to.")]
ShowForget = Annotated[
    bool, Parameter(name="--show-forget", negative=(), help="On the page, show targets as they are, not as a mosaic.")
]
Lock = Annotated[Path, Parameter(name="--lock", help="The lock to read and write.")]


def pipeline_of(
    source: str, *, like: "Base | None" = None, draws: bool = False, split: bool = False
) -> "DiffusionPipeline":
    """The pipeline that is meant by hotfix:NAME, a folder, or a Hub id as ID@COMMIT; one that draws on a GPU if any.

    It is loaded in the dtype and bits of `like`, the base of a recipe, and offloaded as that is. With `split` the
    processes of a launch share its weights out.
    """
    console.quiet_libraries()
    from hotfix import processes
    from hotfix.pipeline import load_pipeline, named

    name, revision = named(source)
    wanted = like.model_copy(update={"pipeline": name, "revision": revision}) if like else name
    return load_pipeline(wanted, revision=revision, device=processes.device() if draws else "cpu", split=split)


def pictures_for(bound: float) -> int:
    """How many pictures to draw for a rate to be bounded, if nothing comes back. Raises HotfixError."""
    from hotfix.intervals import Rate

    if not 0 < bound < 1:
        raise HotfixError(f"--bound {bound}", wanted="a rate between 0 and 1", hint="--bound 0.01 draws 299 pictures")
    return Rate.needed(bound)
