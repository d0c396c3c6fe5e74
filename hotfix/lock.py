"""hotfix.lock: which patches, in which order, for one base. TOML, so that a diff shows what changed."""

import os
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from packaging.version import InvalidVersion, Version

from hotfix import hub, relations
from hotfix.container import write_atomically
from hotfix.errors import HotfixError, StackError, joined
from hotfix.patch import Patch

LOCK = "hotfix.lock"
LOCK_VERSION = 1


def save(path: Path, patches: Sequence[Patch]) -> Path:
    """Write a lock of patches, in stack order. Files are named relative to it, what was pulled by its repository.

    Raises:
        StackError: a patch that is not in a file yet.
    """
    entries = [
        {"name": patch.name, "version": patch.version, "id": patch.id} | _source(patch, path.parent)
        for patch in patches
    ]
    text = tomli_w.dumps({"lock-version": LOCK_VERSION, "patches": entries})
    write_atomically(path, b"# Written by hotfix. Order is part of it.\n" + text.encode())
    return path


@dataclass(frozen=True)
class Row:
    """One patch as a lock names it."""

    name: str
    version: str
    id: str
    source: str  # relative to the lock's folder, or hf://ORG/NAME
    revision: str = ""  # of what is on the Hub: a commit

    @property
    def repo(self) -> str:
        """ORG/NAME of what is on the Hub, or nothing."""
        return self.source.removeprefix(hub.SCHEME) if self.source.startswith(hub.SCHEME) else ""


def rows(path: Path) -> list[Row]:
    """What a lock lists, in order; the patches themselves are not read.

    Raises:
        StackError: no lock, or a broken one.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        found = data["lock-version"]
        listed = [
            Row(
                str(row["name"]),
                str(Version(row["version"])),
                str(row["id"]),
                str(row["source"]),
                str(row.get("revision", "")),
            )
            for row in data.get("patches", [])
        ]
    except OSError as error:
        raise StackError(f"cannot read {path}: {error.strerror}", hint="hotfix add PATCH") from error
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, InvalidVersion, tomllib.TOMLDecodeError) as error:
        raise StackError(f"{path} is not a hotfix lock ({error})", hint="hotfix add PATCH writes one") from error
    if found != LOCK_VERSION:
        raise StackError(f"{path} has lock-version {found}", wanted=str(LOCK_VERSION), hint="upgrade hotfix")
    return listed


def locked(path: Path, row: Row) -> Patch:
    """The patch of a row, which must be the one that was locked.

    Raises:
        StackError: it is another one.
        PatchFormatError: a source that is not a patch, or is not there.
        HubError: one on the Hub that is not in the cache, and cannot be had.
    """
    if row.repo and not hub.COMMIT.fullmatch(row.revision):
        raise StackError(
            f"{path.name} has revision {row.revision!r} of {row.source}",
            wanted="the 40 hex digits of a commit: branches and tags move",
            hint=f"hotfix rm {row.name}, then hotfix add {row.source}",
        )
    patch = hub.fetch(row.repo, row.revision) if row.repo else Patch.load(path.parent / row.source)
    if patch.id != row.id:
        raise StackError(
            f"{row.source} is {patch.id[:19]}…",
            wanted=f"{row.id[:19]}…, as {path.name} says of {row.name}",
            hint=f"if the new file is meant: hotfix rm {row.name}, then hotfix add {row.source}",
        )
    return patch


def load(path: Path) -> list[Patch]:
    """Read a lock and the patches it names, and compare their ids.

    Raises:
        StackError: no lock, a broken one, or a patch that is no longer the one that was locked.
        PatchFormatError: a source that is not a patch.
    """
    return [locked(path, row) for row in rows(path)]


def add(path: Path, sources: Sequence[str | Path]) -> list[Patch]:
    """Append patches to a lock, made if there is none, and say which went out of it.

    Another version of a listed name takes its place; what a new patch supersedes goes out. A source is a file, or
    hf://ORG/NAME with a version, a commit or nothing behind an @: the lock then pins the commit.

    Raises:
        StackError: a requirement would not be met, two patches would be in conflict, or their bases differ. Then
            nothing is written.
    """
    before = load(path) if path.exists() else []
    stack = {patch.name: patch for patch in before}
    for source in map(str, sources):
        patch = hub.pull(source) if source.startswith(hub.SCHEME) else Patch.load(source)
        for name in relations.superseded(patch.manifest, [one.manifest for one in stack.values()]):
            del stack[name]
        for one in stack.values():
            relations.same_base(one.manifest, patch.manifest)
        stack[patch.name] = patch
    _write(path, before, list(stack.values()))
    return [patch for patch in before if patch.id not in {one.id for one in stack.values()}]


def remove(path: Path, names: Sequence[str]) -> None:
    """Take patches out of a lock.

    Raises:
        StackError: a name that is not in it, or one that another patch requires. Then nothing is written.
    """
    listed = rows(path)
    if missing := sorted(set(names) - {row.name for row in listed}):
        wanted = f"one of: {', '.join(row.name for row in listed) or 'nothing'}"
        raise StackError(f"{', '.join(missing)} is not in {path}", wanted=wanted, hint="hotfix status")
    kept = [locked(path, row) for row in listed if row.name not in names]
    gone = []
    for row in listed:
        if row.name in names:
            with suppress(HotfixError):  # a file that is not the one that was locked may always go
                gone.append(locked(path, row))
    _write(path, [*kept, *gone], kept)


def _write(path: Path, before: Sequence[Patch], after: Sequence[Patch]) -> None:
    """Write a lock that has no problem which the one before had not: a bad one may be mended step by step."""
    was, now = (relations.problems([patch.manifest for patch in patches]) for patches in (before, after))
    if new := [problem for problem in now if str(problem) not in map(str, was)]:
        raise joined(new, StackError)
    save(path, after)


def _source(patch: Patch, folder: Path) -> dict[str, str]:
    if patch.pulled:
        source, revision = patch.pulled.split("@")
        return {"source": source, "revision": revision}
    if patch.source is None:
        raise StackError(
            f"{patch.name} {patch.version} is in no file yet",
            hint="save it, and load it from there: Patch.load(patch.save('dist'))",
        )
    return {"source": Path(os.path.relpath(patch.source.resolve(), folder.resolve())).as_posix()}
