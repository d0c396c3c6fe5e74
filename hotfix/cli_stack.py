"""The verbs about several patches: the lock, and merging."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

from hotfix import console, ledger, lock, relations
from hotfix.errors import StackError, joined
from hotfix.options import Json, Lock, Parameter


def add(patches: Annotated[list[str], Parameter(negative=())], /, *, lock_file: Lock = Path(lock.LOCK)) -> None:
    """Put patches at the end of hotfix.lock, made if there is none. What they supersede goes out.

    Another version of one that is listed takes its place. Refused, with nothing written: a requirement that is not
    met, a conflict, another base.

    Args:
        patches: .safetensors files, or hf://ORG/NAME[@VERSION or @COMMIT].
    """
    for gone in lock.add(lock_file, patches):
        console.say(f"out: {gone.name} {gone.version}")
    print(lock_file)


def rm(names: Annotated[list[str], Parameter(negative=())], /, *, lock_file: Lock = Path(lock.LOCK)) -> None:
    """Take patches out of hotfix.lock.

    Args:
        names: of patch lines.
    """
    lock.remove(lock_file, names)
    print(lock_file)


def merge(
    patches: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    out: Annotated[Path, Parameter(name=["-o", "--out"], help="NAME-VERSION.safetensors.")],
    json: Json = False,
) -> None:
    """Several patches as one, exactly: their factors side by side. It supersedes its parts.

    Refused: parts that could not be in one lock, and a file that is there already and is another.

    Args:
        patches: .safetensors files of one base, in stack order.
    """
    from hotfix.export import write
    from hotfix.merge import merge as merged
    from hotfix.patch import Patch

    name, _, version = out.name.removesuffix(".safetensors").rpartition("-")
    if out.suffix != ".safetensors" or not name:
        raise StackError(f"-o is {out.name}", wanted="NAME-VERSION.safetensors", hint="such as faces-1.0.0.safetensors")
    note = ledger.notes(Path(lock.LOCK))
    made = merged([Patch.load(path) for path in patches], name, version)
    (path,) = write({out.name: made.dump()}, out.parent)
    note("merged", [ledger.ref(made)])
    console.data({"path": str(path), "id": made.id}, str(path), json)


def status(*, lock_file: Lock = Path(lock.LOCK), json: Json = False) -> None:
    """What hotfix.lock lists, in order, and whether the files are the ones that were locked. Exit 1 names those not.

    Exit 1 also says what speaks against these patches being on together.
    """
    found = []

    def check(row: lock.Row) -> dict[str, str]:
        found.append(lock.locked(lock_file, row))
        return {"id": found[-1].id}

    listed = [({key: value for key, value in asdict(row).items() if value}, row) for row in lock.rows(lock_file)]
    console.each([(facts, partial(check, row)) for facts, row in listed], json, empty="no patches")
    if wrong := relations.problems([patch.manifest for patch in found]):
        raise joined(wrong, StackError)
