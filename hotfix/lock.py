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
            raise StackError(
                f"{path} has lock-version {data['lock-version']}", wanted=str(LOCK_VERSION), hint="upgrade hotfix"
            )
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


def add(path: Path, files: Sequence[Path]) -> Path:
    """Append patches to a lock, made if there is none; another version of a listed name takes its place."""
    rows = load(path) if path.exists() else []
    for file in files:
        patch = Patch.load(file)
        row = (patch, _relative(file, path.parent))
        names = [listed.name for listed, _ in rows]
        if patch.name in names:
            rows[names.index(patch.name)] = row
        else:
            rows.append(row)
    save(path, rows)
    return path


def remove(path: Path, names: Sequence[str]) -> Path:
    """Take patches out of a lock. Raises StackError for a name that is not in it; then nothing is written."""
    rows = load(path)
    missing = sorted(set(names) - {patch.name for patch, _ in rows})
    if missing:
        listed = ", ".join(patch.name for patch, _ in rows) or "nothing"
        raise StackError(f"{', '.join(missing)} is not in {path}", wanted=f"one of: {listed}", hint="hotfix status")
    save(path, [row for row in rows if row[0].name not in names])
    return path


def _relative(file: Path, folder: Path) -> str:
    return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()
