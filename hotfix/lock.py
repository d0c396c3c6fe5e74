"""hotfix.lock: which patches, in which order, for one base. TOML, so that a diff shows what changed."""

import os
import tomllib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w
from packaging.version import Version

from hotfix import hub, ledger, relations, signing
from hotfix.chain import Change, Ref, sha256
from hotfix.container import write_atomically
from hotfix.errors import HotfixError, StackError, joined
from hotfix.manifest import Manifest
from hotfix.patch import Patch
from hotfix.signer import Signer, parsed, table

LOCK = "hotfix.lock"
LOCK_VERSION = 1


def save(
    path: Path, patches: Sequence[Patch], pinned: Sequence[Signer] | None = None, *, seen: str | None = None
) -> Path:
    """Write a lock of patches, in stack order. Files are named relative to it, what was pulled by its repository.

    What changes is written into its ledger first: no change without a line.

    Args:
        path: of the lock.
        patches: what it lists.
        pinned: whose signatures count from now on; by default, whoever the lock that is there says.
        seen: sha256 of the lock that this was made from. Another one by now is not written over.

    Raises:
        StackError: a patch that is not in a file yet, or another lock than was seen.
        SignatureError: a patch without such a signature.
        SaveError, LedgerError: the lock or its ledger cannot be written. Then, as above, nothing is changed.
    """
    if pinned is None:
        pinned = signers(path) if path.exists() else []
    entries = [
        {"name": patch.name, "version": patch.version, "id": patch.id} | _source(patch, path.parent)
        for patch in patches
    ]
    policy = {"signatures": table(pinned)} if pinned else {}
    for patch in patches if pinned else []:
        assert patch.source is not None  # or it would have no row
        signing.load(patch.source, pinned)
    text = tomli_w.dumps({"lock-version": LOCK_VERSION, **policy, "patches": entries})
    content = b"# Written by hotfix. Order is part of it.\n" + text.encode()
    with ledger.alone(ledger.beside(path)) as write:
        change = Change(before=ledger.state(path), after=sha256(content))
        if change.before == change.after:
            return path
        if seen not in (None, change.before):
            raise StackError(f"{path} was changed meanwhile", hint="nothing was written; give the same command again")
        said = _said(_read(path) if change.before else ([], []), patches, [Row(**row) for row in entries], pinned)
        write_atomically(path, content, ready=lambda: write(**said, lock=change))
    return path


def _said(
    before: tuple[list["Row"], list[Signer]], patches: Sequence[Patch], now: list["Row"], pinned: Sequence[Signer]
) -> dict[str, Any]:
    """What a ledger says of a change of a lock."""
    rows, trusted = before
    new = [ledger.ref(patch) for patch, row in zip(patches, now, strict=True) if row not in rows]
    kept = {row.id for row in now}
    out = [Ref(name=row.name, version=row.version, id=row.id) for row in rows if row.id not in kept]
    facts = {
        "trusted": [one.name for one in pinned if one not in trusted],
        "distrusted": [one.name for one in trusted if one not in pinned],
    }
    facts = {verb: names for verb, names in facts.items() if names}
    if new:
        return {"verb": "added", "patches": new, "out": out, "facts": facts}
    if out:
        return {"verb": "removed", "patches": out, "facts": facts}
    if facts:
        return {"verb": next(iter(facts)), "patches": [], "facts": facts}
    return {"verb": "rewritten", "patches": [ledger.ref(patch) for patch in patches]}


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
    return _read(path)[0]


def signers(path: Path) -> list[Signer]:
    """Whose signatures a lock accepts; where it names none, it asks for none. Raises StackError like `rows`."""
    return _read(path)[1]


def _read(path: Path) -> tuple[list[Row], list[Signer]]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        if (found := data["lock-version"]) != LOCK_VERSION:
            raise StackError(f"{path} has lock-version {found}", wanted=str(LOCK_VERSION), hint="upgrade hotfix")
        tables = data.get("patches", [])
        strange = data.keys() - {"lock-version", "signatures", "patches"}
        if unknown := sorted(strange | {key for row in tables for key in row} - Row.__annotations__.keys()):
            raise ValueError(f"{', '.join(unknown)} is nothing that a lock holds")
        listed = [Row(**{**row, "version": str(Version(row["version"]))}) for row in tables]
        if not all(isinstance(value, str) for row in listed for value in astuple(row)):
            raise ValueError("a patch has something else than text")
        pinned = parsed(data["signatures"]) if "signatures" in data else []
    except OSError as error:
        raise StackError(f"cannot read {path}: {error.strerror}", hint="hotfix add PATCH") from error
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise StackError(f"{path} is not a hotfix lock ({error})", hint="hotfix add PATCH writes one") from error
    return listed, pinned


def locked(path: Path, row: Row, pinned: Sequence[Signer] | None = None) -> Patch:
    """The patch of a row, which must be the one that was locked.

    Args:
        path: of the lock.
        row: of it.
        pinned: whose signatures count; by default, whoever the lock says.

    Raises:
        SignatureError: the lock asks for a signature, and there is none that counts. Its file was not parsed then.
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
    read = partial(signing.load, accepted=signers(path) if pinned is None else pinned)
    patch = hub.fetch(row.repo, row.revision, read) if row.repo else read(path.parent / row.source)
    if (patch.name, patch.version, patch.id) != (row.name, row.version, row.id):
        raise StackError(
            f"{row.source} is {patch.name} {patch.version}, {patch.id[:19]}…",
            wanted=f"{row.version}, {row.id[:19]}…, as {path.name} says of {row.name}",
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
        StackError: a requirement would not be met, two patches would be in conflict, their bases differ, or a name is
            listed from elsewhere than the repository that has it too. Then nothing is written.
    """
    seen = ledger.state(path)
    before, pinned = (load(path), signers(path)) if path.exists() else ([], [])
    stack = {patch.name: patch for patch in before}
    read = partial(signing.load, accepted=pinned)
    for source in map(str, sources):
        patch = hub.pull(source, read) if source.startswith(hub.SCHEME) else read(Path(source))
        for name in relations.superseded(patch.manifest, [one.manifest for one in stack.values()]):
            del stack[name]
        if old := stack.get(patch.name):
            _refuse_namesake(old, patch)
        for one in stack.values():
            if one is not old:  # its place is taken
                relations.same_base(one.manifest, patch.manifest)
        stack[patch.name] = patch
    _write(path, seen, [patch.manifest for patch in before], list(stack.values()))
    return [patch for patch in before if patch.id not in {one.id for one in stack.values()}]


def remove(path: Path, names: Sequence[str]) -> None:
    """Take patches out of a lock.

    Raises:
        StackError: a name that is not in it, or one that another patch requires. Then nothing is written.
    """
    seen, listed = ledger.state(path), rows(path)
    if missing := sorted(set(names) - {row.name for row in listed}):
        wanted = f"one of: {', '.join(row.name for row in listed) or 'nothing'}"
        raise StackError(f"{', '.join(missing)} is not in {path}", wanted=wanted, hint="hotfix status")
    kept = [locked(path, row) for row in listed if row.name not in names]
    gone = []
    for row in listed:
        if row.name in names:
            try:
                gone.append(locked(path, row).manifest)
            except HotfixError:  # of a file that is not the one that was locked, or not there, its row is known
                gone.append(Manifest.model_construct(name=row.name, version=row.version))
    _write(path, seen, [*(patch.manifest for patch in kept), *gone], kept)


def pin(path: Path, pinned: Sequence[Signer]) -> None:
    """Accept signatures of these alone from now on; of nobody is to ask for none. Makes the lock if there is none.

    Raises:
        SignatureError: a listed patch that none of them has signed. Then nothing is written.
    """
    seen = ledger.state(path)
    patches = [locked(path, row, pinned) for row in rows(path)] if path.exists() else []
    save(path, patches, pinned, seen=seen)


def _write(path: Path, seen: str, before: Sequence[Manifest], after: Sequence[Patch]) -> None:
    """Write a lock that has no problem which the one before had not: a bad one may be mended step by step."""
    was, now = relations.problems(before), relations.problems([patch.manifest for patch in after])
    if new := [problem for problem in now if str(problem) not in map(str, was)]:
        raise joined(new, StackError)
    save(path, after, seen=seen)


def _refuse_namesake(old: Patch, new: Patch) -> None:
    """Anybody may call a patch of their repository as they like; that takes no place of one from elsewhere."""
    repos = [patch.pulled.partition("@")[0] for patch in (old, new)]
    if new.pulled and new.id != old.id and repos[0] != repos[1]:
        raise StackError(
            f"{repos[1]} holds a {new.name} {new.version}, which is listed from {repos[0] or 'a file'}",
            wanted="another version from the same repository",
            hint=f"if the new one is meant: hotfix rm {new.name} first",
        )


def _source(patch: Patch, folder: Path) -> dict[str, str]:
    if patch.pulled:
        source, revision = patch.pulled.split("@")
        return {"source": source, "revision": revision}
    if patch.source is None:
        raise StackError(
            f"{patch.name} {patch.version} is in no file yet",
            hint="save it, and load it from there: Patch.load(patch.save('dist'))",
        )
    there = patch.source.parent.resolve() / patch.source.name  # a link stays one: its signature lies beside it
    return {"source": Path(os.path.relpath(there, folder.resolve())).as_posix()}
