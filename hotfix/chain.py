"""The lines of a ledger, each chained to the one before. docs/ledger.md says what that finds, and what it cannot.

A line is the compact JSON of an Entry with sorted keys, and a line feed. `digest` is the sha256 of that JSON without
`digest` in it; `previous` is the digest of the line before, which puts the lines in one order.
"""

import hashlib
import json
from shlex import quote
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from hotfix.errors import LedgerError

START = "sha256:" + "0" * 64  # what the first line follows
BACK = "get the file back from a copy; or move it away and keep it: the next change begins another"
UNDONE = "what it says was interrupted, or undone without hotfix"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)  # a newer hotfix may say more


class Ref(_Part):
    """A patch, and the request that its recipe quotes."""

    name: str
    version: str
    id: str
    request: str = ""


class Change(_Part):
    """The sha256 of a lock, before and after; of one that is not there, nothing."""

    before: str
    after: str


class Entry(_Part):
    """One line."""

    n: int  # from 1
    at: str  # UTC
    by: str  # who says so: a claim, as in a commit
    verb: str
    patches: list[Ref]
    out: list[Ref] = []  # what went out of the lock to make room for them
    lock: Change | None = None  # where the line is about a change of the lock
    facts: dict[str, str | bool | list[str]] = {}
    previous: str
    digest: str

    def line(self) -> bytes:
        """As it stands in the file."""
        return _json(self.model_dump(mode="json", exclude_defaults=True)) + b"\n"


def sha256(content: bytes) -> str:
    """As everything here is named."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def follow(last: Entry | None, **said: Any) -> Entry:
    """The entry that says this after the last one."""
    n, previous = (last.n + 1, last.digest) if last else (1, START)
    entry = Entry(n=n, previous=previous, digest="", **said)
    return entry.model_copy(update={"digest": _digest(entry)})


def end(raw: bytes, name: str) -> Entry | None:
    """The last entry of a file, of which nothing else is looked at.

    Raises:
        LedgerError: its last line is incomplete, or is not as it was written.
    """
    whole, _, rest = raw.rpartition(b"\n")
    if rest and _entry(rest):
        raise LedgerError(f"{name} ends without a line feed", hint=f"echo >> {quote(name)}")
    number = raw.count(b"\n")
    if rest:
        hint = f"truncate -s {len(raw) - len(rest)} {quote(name)}; what changes a lock had not been done yet"
        raise LedgerError(f"{name} ends within line {number + 1}, as after a power cut", hint=hint)
    if not raw:
        return None
    if last := _entry(whole.rpartition(b"\n")[2]):
        return last
    raise _changed(number, name)


def entries(raw: bytes, name: str) -> list[Entry]:
    """All entries of a file, verified.

    Raises:
        LedgerError: the first line that was changed, or does not follow the one before.
    """
    found: list[Entry] = []
    for number, line in enumerate(raw.split(b"\n")[:-1], start=1):
        entry = _entry(line)
        if entry is None:
            raise _changed(number, name)
        before = found[-1].digest if found else START
        if (entry.n, entry.previous) != (number, before):
            raise LedgerError(
                f"line {number} of {name} is number {entry.n}, after {entry.previous[:19]}…",
                wanted=f"number {number}, after {before[:19]}…: lines are missing, or stand in another order",
                hint=BACK,
            )
        found.append(entry)
    end(raw, name)
    return found


def remarks(found: list[Entry]) -> dict[int, str]:
    """What the digests of the lock say about single lines, by their numbers."""
    said: dict[int, str] = {}
    last: Entry | None = None
    for entry in found:
        if entry.lock is None:
            continue
        if last is None or last.lock is None:
            said |= {entry.n: "the lock is older than this record"} if entry.lock.before else {}
        elif entry.lock.before == last.lock.before:
            said[last.n] = UNDONE
        elif entry.lock.before != last.lock.after:
            said[entry.n] = "the lock had been changed without hotfix before"
        last = entry
    return said


def _changed(number: int, name: str) -> LedgerError:
    return LedgerError(f"line {number} of {name} is not as it was written", hint=BACK)


def _entry(line: bytes) -> Entry | None:
    try:
        entry = Entry.model_validate_json(line)
    except ValidationError:
        return None
    return entry if entry.line() == line + b"\n" and entry.digest == _digest(entry) else None


def _digest(entry: Entry) -> str:
    said = entry.model_dump(mode="json", exclude_defaults=True, exclude={"digest"})
    return sha256(_json(said))


def _json(said: dict[str, Any]) -> bytes:
    return json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
