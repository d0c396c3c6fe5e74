"""The verb about running servers."""

import os
import time
from contextlib import suppress
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from hotfix import console, ledger, lock
from hotfix.chain import Ref
from hotfix.errors import HotfixError
from hotfix.options import Json, Lock, Parameter

if TYPE_CHECKING:
    from hotfix.sync import Way

DAY = 86_400  # seconds


def sync(
    server: str,
    *,
    lock_file: Lock = Path(lock.LOCK),
    folder: Annotated[
        Path | None, Parameter(help="SGLang: of the patches, as it sees it. vLLM-Omni: where to write its adapter.")
    ] = None,
    dry_run: Annotated[bool, Parameter(negative=(), help="Say what would change, and change nothing.")] = False,
    watch: Annotated[
        bool, Parameter(negative=(), help="Go on until interrupted: after every change of either.")
    ] = False,
    every: Annotated[float, Parameter(help="Seconds between two looks, with --watch.")] = 2.0,
    json: Json = False,
) -> None:
    """Make a running server have on what the lock lists: a hotfix-serving app, SGLang-Diffusion or vLLM-Omni.

    Says what will change, changes it, and compares again; where that fails, what was on before is on. The token of a
    hotfix-serving app is read from HOTFIX_TOKEN.

    Args:
        server: its address, such as http://127.0.0.1:8000.
    """
    from hotfix.sync import Way

    if not 0 < every <= DAY:
        wanted = "seconds, more than none and at most a day"
        raise HotfixError(f"--every is {every:g}", wanted=wanted, hint="leave it out for 2")
    way = Way(folder, os.environ.get("HOTFIX_TOKEN", ""))
    if watch and not dry_run:
        with suppress(KeyboardInterrupt):
            _watch(server, lock_file, way, every, json)
    else:
        _once(server, lock_file, way, json, dry_run=dry_run)


def _once(server: str, lock_file: Path, way: "Way", json: bool, *, dry_run: bool = False, quiet: bool = False) -> None:
    """Print the plan, carry it out, and print what requests must carry; if `quiet`, only where something is to do."""
    from hotfix.sync import carry_out, plan

    made = plan(server, lock_file, way)
    if made.done and quiet:
        return
    note = ledger.notes(lock_file)
    if not json:
        print(
            "\n".join("  ".join((f"{change:5}", *one)) for change, *one in map(dict.values, made.changes))
            or "no patches",
            flush=True,
        )
    fields = {} if made.done or dry_run else carry_out(made, lock_file, way)
    if not dry_run:
        on = [Ref(name=name, version=version, id=id_) for name, version, id_ in made.wanted]
        note("synced", on, server=urlsplit(server).netloc.rpartition("@")[2], kind=made.kind)
    value = {
        "server": server,
        "kind": made.kind,
        "changes": made.changes,
        "applied": not (made.done or dry_run),
        **fields,
    }
    if json or fields:
        console.data(value, f"every request must carry: {dumps(fields)}", json)


def _watch(server: str, lock_file: Path, way: "Way", every: float, json: bool) -> None:
    """Compare again and again: the lock may change, and a server that starts again may have lost everything."""
    said = ""
    while True:
        try:
            _once(server, lock_file, way, json, quiet=True)
            said = ""
        except HotfixError as error:
            words = console.sentence(error)
            if words != said:
                console.say(words)
            said = words
        time.sleep(every)
