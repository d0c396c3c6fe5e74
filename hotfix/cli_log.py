"""The verbs about the ledger: what was done, and what somebody decided."""

from pathlib import Path
from typing import Annotated

from hotfix import chain, console, ledger, lock
from hotfix.chain import Entry, Ref
from hotfix.errors import HotfixError, LedgerError, printable
from hotfix.options import Json, Lock, Parameter


def log(
    names: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    /,
    *,
    expect: Annotated[str, Parameter(help="The last digest that it printed once; exit 1 if it is gone.")] = "",
    lock_file: Lock = Path(lock.LOCK),
    json: Json = False,
) -> None:
    """What was decided and done with the patches of hotfix.lock: by whom, when, for which request.

    The record is verified as it is read: exit 1 names the first line that is not as it was written, or says that the
    lock is not as the record has it. Nothing is printed of a broken one.

    Args:
        names: of patch lines; only what is about them.
    """
    path, (found, now) = ledger.beside(lock_file), ledger.read(lock_file)
    head = found[-1].digest if found else chain.START
    if expect and expect not in {entry.digest for entry in found}:
        raise LedgerError(
            f"{path} has no line {expect}",
            wanted="the one that was there once",
            hint="it was rewritten, or cut off at its end: compare it with a copy",
        )
    remarks = chain.remarks(found)
    chosen = [one for one in found if not names or {ref.name for ref in (*one.patches, *one.out)} & {*names}]
    rows = [
        one.model_dump(mode="json", exclude_defaults=True) | ({"remark": remarks[one.n]} if one.n in remarks else {})
        for one in chosen
    ]
    text = [_line(one, remarks.get(one.n, "")) for one in chosen] or [f"nothing about {', '.join(names) or 'anything'}"]
    console.data({"head": head, "lines": rows}, "\n".join([*text, f"the last of {len(found)}: {head}"]), json)
    if (problem := _stale(found, now, lock_file)) is not None:
        raise problem


def approve(
    patch: Path,
    *,
    report: Annotated[Path | None, Parameter(help="On which evidence; NAME-VERSION.report.json beside it.")] = None,
    note: Annotated[str, Parameter(help="Why, free text.")] = "",
    lock_file: Lock = Path(lock.LOCK),
    json: Json = False,
) -> None:
    """Write down that you approve a patch, and on which report. HOTFIX_ACTOR says who you are, else the login name.

    Args:
        patch: a .safetensors file.
    """
    from hotfix.patch import Patch
    from hotfix.report import Report

    opened = Patch.load(patch)
    beside = patch.with_name(f"{patch.name.removesuffix('.safetensors')}.report.json")
    facts: dict[str, str | bool] = {}
    if (file := report or (beside if beside.exists() else None)) is not None:
        measured = Report.load(file)
        if [on.id for on in measured.patches][-1:] != [opened.id]:  # as `Report.beside` has it
            hint = "hotfix score, with the patch on, as the last of its stack; or name another with --report"
            raise HotfixError(f"{file} is not of {opened.name} {opened.version}", wanted=opened.id, hint=hint)
        facts = ledger.evidence(measured, file.read_bytes())
    if note:
        facts["note"] = ledger.text(note)
    entry = ledger.append(ledger.beside(lock_file), "approved", [ledger.ref(opened)], **facts)
    console.data(entry.model_dump(mode="json", exclude_defaults=True), _line(entry, ""), json)


def _stale(found: list[Entry], now: str, lock_file: Path) -> LedgerError | None:
    """Where the lock is not as the last line about it left it."""
    last = next((entry for entry in reversed(found) if entry.lock), None)
    if last is None or last.lock is None or now == last.lock.after:
        return None
    if now == last.lock.before:
        hint = "if it is still wanted, give the command again"
        return LedgerError(f"{lock_file} is as before line {last.n}: {chain.UNDONE}", hint=hint)
    return LedgerError(
        f"{lock_file} is {f'{now[:19]}…' if now else 'not there'}",
        wanted=f"{last.lock.after[:19]}…, as line {last.n} left it",
        hint="it was changed without hotfix, or lines were cut off; the next change by hotfix notes what it finds",
    )


def _line(entry: Entry, remark: str) -> str:
    """One entry as one line, whatever stands in it."""
    facts = [f"{key.replace('_', ' ')}: {_text(value)}" for key, value in sorted(entry.facts.items())]
    requests = dict.fromkeys(ref.request for ref in entry.patches if ref.request)
    words = [
        f"{entry.verb} {', '.join(map(_name, entry.patches))}".rstrip(),
        *(f"request: {request}" for request in requests),
        *([f"out: {', '.join(map(_name, entry.out))}"] if entry.out else []),
        *facts,
        *([remark] if remark else []),
    ]
    line = f"{entry.n:>3}  {entry.at}  {entry.by}  {'; '.join(words)}"
    return printable(line)


def _text(value: str | bool | list[str]) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else ", ".join(value) or "none"


def _name(ref: Ref) -> str:
    return f"{ref.name} {ref.version} {ref.id[:19]}…"
