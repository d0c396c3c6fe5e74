"""The ledger: the file beside a lock that keeps what was decided and done with its patches, line after line."""

import errno
import getpass
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hotfix.chain import Entry, Ref, end, entries, follow, sha256
from hotfix.errors import HotfixError, LedgerError, SaveError, StackError
from hotfix.manifest import now

if TYPE_CHECKING:
    from hotfix.patch import Patch
    from hotfix.report import Report

ACTOR = "HOTFIX_ACTOR"
Write = Callable[..., Entry]


def beside(lock: Path) -> Path:
    """The ledger of a lock: hotfix.log.jsonl of hotfix.lock."""
    return lock.with_name(f"{lock.name.removesuffix('.lock')}.log.jsonl")


def state(lock: Path) -> str:
    """The sha256 of a lock, or nothing where there is none."""
    try:
        return sha256(lock.read_bytes()) if lock.exists() else ""
    except OSError as error:
        raise StackError(f"cannot read {lock}: {error.strerror}", hint="hotfix add PATCH") from error


def ref(patch: "Patch") -> Ref:
    """A patch as a ledger names it."""
    return Ref(name=patch.name, version=patch.version, id=patch.id, request=patch.manifest.request)


def evidence(report: "Report", content: bytes) -> dict[str, str | bool]:
    """What a ledger keeps of a report: its recipe, the sha256 of its file, and whether the budget was kept."""
    return {"recipe": report.recipe, "report": sha256(content), "within_budget": not report.misses}


def actor() -> str:
    """Who is said to act: HOTFIX_ACTOR, a person or a role as you like; else the login name."""
    with suppress(OSError, KeyError):
        return text(os.environ.get(ACTOR) or getpass.getuser())
    return f"uid {os.getuid()}"  # a container need not know its names


def text(words: str) -> str:
    """Words from outside as JSON can hold them: what was no UTF-8 becomes question marks."""
    return words.encode(errors="replace").decode()


@contextmanager
def alone(path: Path) -> Iterator[Write]:
    """Keep others from writing to a ledger, begun if there is none, and write one line.

    Raises:
        SaveError: it cannot be written; then it is as it was.
        LedgerError: its last line is incomplete, or is not as it was written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise _unwritable(path, error) from error
    with file:
        _wait(file, "LOCK_EX")
        file.seek(0)
        raw = file.read()
        last = end(raw, str(path))

        def write(verb: str, patches: Sequence[Ref], **more: Any) -> Entry:
            entry = follow(last, at=now(), by=actor(), verb=verb, patches=list(patches), **more)
            line = entry.line()
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError as error:
                with suppress(OSError):
                    file.truncate(len(raw))
                raise _unwritable(path, error) from error
            return entry

        yield write


def append(path: Path, verb: str, patches: Sequence[Ref], **facts: str | bool | list[str]) -> Entry:
    """Write one line, about something else than a change of the lock. Raises what `alone` does."""
    with alone(path) as write:
        return write(verb, patches, facts=facts)


def kept(path: Path) -> bool:
    """Whether there is a ledger. Raises what `append` would raise, before there is something to say."""
    if path.exists():
        with alone(path):
            return True
    return False


def notes(lock: Path, *, begin: bool = False) -> Callable[..., None]:
    """For work that changes no lock: what writes its line once it is done, seen now to be able to.

    Args:
        lock: whose ledger it is.
        begin: one that is not there; otherwise nothing is written then.

    Raises:
        HotfixError: as `alone`. What is returned may raise it too, and then says that the work is done.
    """
    path = beside(lock)
    if not kept(path) and not begin:
        return lambda verb, patches, **facts: None
    if not path.exists() and not os.access(path.absolute().parent, os.W_OK):
        raise _unwritable(path, OSError(errno.EACCES, os.strerror(errno.EACCES)))

    def note(verb: str, patches: Sequence[Ref], **facts: str | bool | list[str]) -> None:
        try:
            append(path, verb, patches, **facts)
        except HotfixError as error:
            raise type(error)(f"{verb}, but that is not in the ledger: {error}", hint=error.hint) from error

    return note


def read(lock: Path) -> tuple[list[Entry], str]:
    """What the ledger of a lock says, verified, and the sha256 of the lock at that moment.

    Raises:
        LedgerError: there is none, or it is not as it was written.
    """
    path = beside(lock)
    try:
        with path.open("rb") as file:
            _wait(file, "LOCK_SH")
            return entries(file.read(), str(path)), state(lock)
    except OSError as error:
        hint = "hotfix build, add and approve begin one"
        raise LedgerError(f"cannot read {path}: {error.strerror}", hint=hint) from error


def _wait(file: IO[bytes], kind: str) -> None:
    """Until nobody else writes. On Windows not: there two at once may break the chain, which is found on reading."""
    with suppress(ImportError):
        import fcntl

        fcntl.flock(file, getattr(fcntl, kind))


def _unwritable(path: Path, error: OSError) -> SaveError:
    return SaveError(f"cannot write {path}: {error.strerror}", hint="free some space, or see who may write there")
