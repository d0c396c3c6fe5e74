"""hotfix.lock: which patches, in which order, for one base. TOML, so that a diff shows what changed."""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from hotfix.container import write_atomically
from hotfix.errors import StackError
from hotfix.patch import Patch

LOCK = "hotfix.lock"
LOCK_VERSION = 1


def save(path: Path, rows: Sequence[tuple[Patch, Path]]) -> Path:
    """Write a lock of (patch, its file) rows, in stack order. Files are named relative to the lock."""
    entries = [
        {"name": patch.name, "version": patch.version, "id": patch.id, "source": _relative(file, path.parent)}
        for patch, file in rows
    ]
    text = tomli_w.dumps({"lock-version": LOCK_VERSION, "patches": entries})
    write_atomically(path, b"# Written by hotfix. Order is part of it.\n" + text.encode())
    return path


def load(path: Path) -> list[Patch]:
    """Read a lock and the patches it names, and compare their ids.

    Raises:
        StackError: no lock, a broken one, or a patch that is no longer the one that was locked.
        PatchFormatError: a source that is not a patch.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        found = data["lock-version"]
        rows = [(str(row["name"]), str(row["id"]), str(row["source"])) for row in data.get("patches", [])]
    except OSError as error:
        raise StackError(f"cannot read {path}: {error.strerror}", hint="hotfix add PATCH") from error
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StackError(f"{path} is not a hotfix lock ({error})", hint="hotfix add PATCH writes one") from error
    if found != LOCK_VERSION:
        raise StackError(f"{path} has lock-version {found}", wanted=str(LOCK_VERSION), hint="upgrade hotfix")
    return [_locked(path, *row) for row in rows]


def _locked(path: Path, name: str, id_: str, source: str) -> Patch:
    patch = Patch.load(path.parent / source)
    if patch.id != id_:
        raise StackError(
            f"{source} is {patch.id[:19]}…",
            wanted=f"{id_[:19]}…, as {path.name} says of {name}",
            hint=f"if the new file is meant: hotfix rm {name}, then hotfix add {source}",
        )
    return patch


def add(path: Path, files: Sequence[Path]) -> Path:
    """Append patches to a lock, made if there is none; another version of a listed name takes its place."""
    rows = {patch.name: patch for patch in (load(path) if path.exists() else [])}
    for file in files:
        patch = Patch.load(file)
        rows[patch.name] = patch
    return save(path, [(patch, patch.source or path) for patch in rows.values()])


def remove(path: Path, names: Sequence[str]) -> Path:
    """Take patches out of a lock. Raises StackError for a name that is not in it; then nothing is written."""
    patches = load(path)
    missing = sorted(set(names) - {patch.name for patch in patches})
    if missing:
        listed = ", ".join(patch.name for patch in patches) or "nothing"
        raise StackError(f"{', '.join(missing)} is not in {path}", wanted=f"one of: {listed}", hint="hotfix status")
    return save(path, [(patch, patch.source or path) for patch in patches if patch.name not in names])


def _relative(file: Path, folder: Path) -> str:
    return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()
