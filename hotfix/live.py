"""Live: the stack of a pipeline that is serving, and the folder that it comes from.

The folder holds patches as NAME-VERSION.safetensors, and hotfix.lock, which says what is on. A change arrives as the
text of another lock; it is on, and in the folder, or nothing has changed. A new start puts on what the folder says.
"""

import re
import secrets
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from hotfix import lock
from hotfix.container import write_atomically
from hotfix.errors import StackError
from hotfix.guard import note_always, snapshot_id
from hotfix.patch import Patch
from hotfix.signer import Signer
from hotfix.stack import Stack, applied

FILE = re.compile(r"[a-z0-9][\w-]*-[\w.!+-]+\.safetensors", re.ASCII)
NOTHING = "none"  # where a stack's id would stand: of a pipeline without patches


class Refused(StackError):
    """A change that was not even tried. `status` is what HTTP calls the reason."""

    def __init__(self, status: int, found: str, *, wanted: str = "", hint: str) -> None:
        super().__init__(found, wanted=wanted, hint=hint)
        self.status = status


class Live:
    """One pipeline, its folder, and the stack that was last put on."""

    def __init__(self, pipe: Any, folder: Path) -> None:
        """Put on what the folder's lock lists.

        Raises:
            HotfixError: it cannot be put on. Do not serve without it.
        """
        self.pipe, self.folder = pipe, folder
        self._changing, self._nonce = Lock(), secrets.token_hex(8)
        self.stack = Stack.load(folder / lock.LOCK) if (folder / lock.LOCK).exists() else Stack()
        self.stack.apply(pipe)
        self._verify(self.stack)
        note_always(pipe)

    @property
    def etag(self) -> str:
        """Names this state of the pipeline, and no earlier or later one with the same patches on."""
        return f'"{(snapshot_id(self.pipe) or NOTHING).replace(" ", "+")}.{self._nonce}"'

    def change(self, text: bytes, etag: str) -> bool:
        """Put on what a lock lists, in place of what is on, and keep the lock in the folder.

        Args:
            text: of the lock; its sources are not read, only names, versions and ids.
            etag: what the change was made for.

        Returns:
            False where the lock lists just what is on.

        Raises:
            Refused: another change is being made, or has been made since.
            HotfixError: the lock or a patch is not usable. The previous stack is on.
        """
        if not self._changing.acquire(blocking=False):
            raise Refused(409, "another change is being made", hint="read /hotfix/status again when it is done")
        staged = self.folder / f"{lock.LOCK}.new"
        try:
            if etag != self.etag:
                hint = "read /hotfix/status, and send its ETag if the change is still wanted"
                raise Refused(412, "the stack has changed since, or the request was sent before", hint=hint)
            write_atomically(staged, text)
            rows = lock.rows(staged)
            patches = {row: self._patch(staged, row) for row in set(rows)}
            new = Stack(tuple(patches[row] for row in rows))
            if [patch.id for patch in new.patches] == [patch.id for patch in self.stack.patches]:
                self._verify(new)
                return False
            self._swap(new)
            return True
        finally:
            with suppress(OSError):
                staged.unlink()
            self._changing.release()

    def _patch(self, staged: Path, row: lock.Row) -> Patch:
        file = f"{row.name}-{row.version}.safetensors"
        if not FILE.fullmatch(file):
            raise StackError(f"{row.name!r} {row.version!r} names no patch", hint="hotfix add PATCH writes a lock")
        return lock.locked(staged, replace(row, source=file), self._signers() or None)

    def _signers(self) -> list[Signer]:
        """Whose signatures count: the folder's lock says so, and one that arrives cannot change it."""
        kept = self.folder / lock.LOCK
        return lock.signers(kept) if kept.exists() else []

    def _swap(self, new: Stack) -> None:
        self.stack.replace(self.pipe, new)
        try:
            self._verify(new)
            lock.save(self.folder / lock.LOCK, new.patches)
        except BaseException:
            new.replace(self.pipe, self.stack)
            raise
        self.stack, self._nonce = new, secrets.token_hex(8)

    def _verify(self, stack: Stack) -> None:
        """Compare a stack with what acts on the pipeline."""
        wanted = {patch.id for patch in stack.patches}
        found = {one.id for one in applied(self.pipe) if one.state == "on"}
        if wanted != found:
            raise StackError(
                f"{len(wanted - found)} of the patches do not act, and {len(found - wanted)} others do",
                wanted="the lock, and nothing else",
                hint="patches of a server are put on through it alone; start it again to get back to its lock",
            )
