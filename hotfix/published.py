"""What organisations have published, and what of it is newer than a lock."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.version import Version

from hotfix import hub, lock, relations
from hotfix.errors import HotfixError


@dataclass(frozen=True)
class Line:
    """A patch line on the Hub: its versions, oldest first, and what the newest says of itself.

    The newest is not always the last: a pre-release speaks for a line only where there is nothing else.
    """

    repo: str
    versions: tuple[str, ...] = ()
    newest: str = ""
    name: str = ""
    base: str = ""
    supersedes: tuple[str, ...] = ()
    problem: str = ""  # why it cannot be used


@dataclass(frozen=True)
class Outdated:
    """A row of a lock, and what takes its place."""

    name: str
    version: str
    source: str
    newer: tuple[str, ...]
    superseded_by: tuple[str, ...]  # ORG/NAME@VERSION
    unread: tuple[str, ...]  # lines of its organisation that may supersede it too, and why they cannot be read


def lines(org: str, base: str = "") -> list[Line]:
    """The patch lines of an organisation, of one base if you name it. No tensors are fetched.

    Raises:
        HubError: the Hub cannot be asked. A single line that cannot be used says so instead.
    """
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(_line, hub.lines(org))
    return [line for line in found if line.problem or base in ("", line.base)]


def _line(repo: str) -> Line:
    line = Line(repo)
    try:
        if not (found := hub.versions(repo)):
            return line  # a push that goes on, or was cut off: nothing is released
        tag = hub.newest(repo, found)
        line = replace(line, versions=tuple(map(str, found)), newest=str(Version(tag)))
        said = hub.outline(repo, tag).manifest
    except HotfixError as error:
        return replace(line, problem=str(error))
    return replace(line, name=said.name, base=said.base.repo, supersedes=tuple(said.supersedes))


def outdated(path: Path) -> list[Outdated]:
    """Of every row of a lock that is on the Hub: newer versions, and what its organisation published to supersede it.

    Raises:
        HubError: the Hub cannot be asked. A single line of an organisation that cannot be read is in `unread` instead.
    """
    rows = [row for row in lock.rows(path) if row.repo]
    published = {org: lines(org) for org in sorted({row.repo.split("/")[0] for row in rows})}
    found = []
    for row in rows:
        mine = Version(row.version)
        stable = [one for one in hub.versions(row.repo) if mine.is_prerelease or not one.is_prerelease]
        newer, others = tuple(str(one) for one in stable if one > mine), published[row.repo.split("/")[0]]
        by = tuple(
            f"{line.repo}@{line.newest}"
            for line in others
            if any(relations.met(text, {row.name: row.version}) for text in line.supersedes)
        )
        unread = tuple(f"{line.repo}: {line.problem}" for line in others if line.problem)
        found.append(Outdated(row.name, row.version, row.source, newer, by, unread))
    return found
