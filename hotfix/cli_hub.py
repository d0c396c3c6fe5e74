"""The verbs about the Hub."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from hotfix import console, ledger, lock
from hotfix.errors import HubError, printable
from hotfix.options import Json, Lock, Out, Parameter


def push(
    patch: Path,
    repo: str,
    *,
    report: Annotated[Path | None, Parameter(help="The report.json of this very patch.")] = None,
    private: Annotated[
        bool, Parameter(negative=(), help="Only for members to see; refused where it is public already.")
    ] = False,
    license: Annotated[str, Parameter(help="Of the patch, such as apache-2.0; none is claimed by itself.")] = "",
    json: Json = False,
) -> None:
    """Publish a patch on the Hub, as a version that never changes: one commit and one tag.

    With it go its card, its report if you name it, and the signatures that lie beside it. Pushed again, what was
    measured or signed since then joins it on main.

    Args:
        patch: a .safetensors file.
        repo: ORG/NAME, made if it is not there; one repository is one patch line.
    """
    from hotfix.patch import Patch
    from hotfix.publish import push as publish
    from hotfix.report import Report

    opened, measured = Patch.load(patch), Report.load(report) if report else None
    note = ledger.notes(Path(lock.LOCK))
    done = publish(opened, repo, report=measured, private=private or None, license=license)
    note("pushed", [ledger.ref(opened)], repo=done.repo, revision=done.revision)
    if not done.new:
        joined = (
            f"its report and signatures are on main, as {done.evidence}" if done.evidence else "nothing was changed"
        )
        console.say(f"this very patch was there already: {joined}")
    console.data(asdict(done), f"{done.repo}@{done.version}", json)


def pull(reference: str, /, *, out: Out = Path("dist"), json: Json = False) -> None:
    """Fetch a patch from the Hub, check it, and write NAME-VERSION.safetensors, with its report and signatures.

    Args:
        reference: ORG/NAME, ORG/NAME@VERSION or ORG/NAME@COMMIT; without either, the newest version.
    """
    from hotfix.hub import pull as fetch
    from hotfix.publish import unpack

    patch = fetch(reference)
    files = unpack(patch, out)
    console.say(f"{patch.name} {patch.version}, {patch.id}, from {patch.pulled}")
    facts = {"id": patch.id, "revision": patch.pulled.split("@")[1], "files": list(map(str, files))}
    console.data(facts, "\n".join(map(str, files)), json)


def list_lines(org: str, *, base: str = "", json: Json = False) -> None:
    """The patch lines that an organisation has published: versions, base, and what the newest supersedes.

    Args:
        org: an organisation or a user.
        base: only lines for this base, named as `hotfix show` names it.
    """
    from hotfix.published import lines

    found = lines(org, base)
    text = [
        f"BAD  {one.repo}  {one.problem}"
        if one.problem
        else "  ".join(
            [one.repo, ", ".join(one.versions), f"for {one.base}", *(f"supersedes {other}" for other in one.supersedes)]
        )
        if one.versions
        else f"{one.repo}  no version yet"
        for one in found
    ]
    console.data([asdict(one) for one in found], "\n".join(map(printable, text)) or "no patch lines", json)


def outdated(*, lock_file: Lock = Path(lock.LOCK), json: Json = False) -> None:
    """Newer versions of what hotfix.lock has from the Hub, and what their organisations published to supersede it.

    Exit code 1 where a line of theirs cannot be read: it may be one that does.
    """
    from hotfix.published import outdated as compare

    found = compare(lock_file)
    text = [
        f"{one.name} {one.version}: {words} {', '.join(others)}"
        for one in found
        for words, others in (("newer:", one.newer), ("superseded by", one.superseded_by))
        if others
    ]
    unread = list(dict.fromkeys(words for one in found for words in one.unread))
    text += [f"BAD  {words}" for words in unread]
    console.data([asdict(one) for one in found], "\n".join(map(printable, text)) or "nothing newer", json)
    if unread:
        words = f"{len(unread)} of their patch lines cannot be read, and may supersede what is locked"
        raise HubError(words, hint="the same command again; where that does not help, ask who published it")
