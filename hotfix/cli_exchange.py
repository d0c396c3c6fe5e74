"""The verbs between hotfix and other tools: patches in their layouts, and their LoRA files as patches."""

from pathlib import Path
from typing import Annotated

from hotfix import console, ledger, lock
from hotfix.options import Json, Out, Parameter, pipeline_of


def export(
    patch: Path,
    /,
    *,
    to: Annotated[str, Parameter(help="kohya, peft or diffusers.")],
    out: Annotated[Path | None, Parameter(name=["-o", "--out"], help="Folder; NAME-VERSION-FORM by default.")] = None,
    json: Json = False,
) -> None:
    """Write a patch in the layout of another reader: the same change of the weights under other names.

    Args:
        patch: a .safetensors file.
    """
    from hotfix.export import export as exported
    from hotfix.export import write
    from hotfix.patch import Patch

    opened = Patch.load(patch)
    if to != "peft":  # the one layout that diffusers has no say in
        console.quiet_libraries()
    files = exported(opened, to)
    paths = [str(path) for path in write(files, out or Path(f"{opened.name}-{opened.version}-{to}"))]
    console.data({"id": opened.id, "files": paths}, "\n".join(paths), json)


def import_(
    file: Path,
    /,
    *,
    base: Annotated[str, Parameter(help="The pipeline it was trained on: hotfix:NAME, a folder, or HUB/ID@COMMIT.")],
    name: Annotated[str, Parameter(help="Of the new patch line.")],
    version: Annotated[str, Parameter(help="Such as 1.0.0.")],
    request: Annotated[str, Parameter(help="The ticket that asks for it, free text.")] = "",
    out: Out = Path("dist"),
    json: Json = False,
) -> None:
    """Make a patch of an ordinary LoRA file. Nothing is measured: what it does, only its maker knows.

    Args:
        file: .safetensors; kohya's, peft's or diffusers' keys.
    """
    console.quiet_libraries()
    from hotfix.export import write
    from hotfix.importing import check, wrap
    from hotfix.pipeline import named

    check(file, name, version)
    note = ledger.notes(Path(lock.LOCK))
    repo, commit = named(base)
    made = wrap(file, pipeline_of(base), name, version, repo=repo, commit=commit, request=request)
    (path,) = write({f"{made.name}-{made.version}.safetensors": made.dump()}, out)
    note("imported", [ledger.ref(made)])
    console.data({"path": str(path), "id": made.id}, str(path), json)
