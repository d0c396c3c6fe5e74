"""hotfix.lock: which patches, in which order, for one base. TOML, written by us so that a diff shows one line a change."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from hotfix.container import write_atomically
from hotfix.errors import StackError
from hotfix.patch import Patch

LOCK = "hotfix.lock"
LOCK_VERSION = 1


def save(path: Path, rows: Sequence[tuple[Patch, str]]) -> None:
    """Write a lock of (patch, source) rows, in stack order. Sources are paths relative to the lock."""
    entries = [{"name": p.name, "version": p.version, "id": p.id, "source": source} for p, source in rows]
    text = tomli_w.dumps({"lock-version": LOCK_VERSION, "patches": entries})
    write_atomically(path, b"# Written by hotfix. Order is part of it.\n" + text.encode())


def load(path: Path) -> list[tuple[Patch, str]]:
    """Read a lock and the patches it names, and compare their ids.

    Raises:
        StackError: no lock, a broken one, or a patch that is no longer the one that was locked.
        PatchFormatError: a source that is not a patch.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        if data["lock-version"] != LOCK_VERSION:
            raise StackError(f"{path} has lock-version {data['lock-version']}", wanted=str(LOCK_VERSION))
        wanted = [(str(row["name"]), str(row["id"]), str(row["source"])) for row in data.get("patches", [])]
    except OSError as error:
        raise StackError(f"cannot read {path}: {error.strerror}", hint="hotfix add PATCH") from error
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StackError(f"{path} is not a hotfix lock ({error})", hint="hotfix add PATCH writes one") from error
    rows = []
    for name, id_, source in wanted:
        patch = Patch.load(path.parent / source)
        if patch.id != id_:
            raise StackError(
                f"{source} is {patch.id[:19]}…",
                wanted=f"{id_[:19]}…, as {path.name} says of {name}",
                hint=f"if the new file is meant: hotfix rm {name}, then hotfix add {source}",
            )
        rows.append((patch, source))
    return rows
