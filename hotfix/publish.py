"""Publishing: a patch, with its report, card, signatures and kohya file, as one commit and one tag that never moves."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hotfix import card, export, hub
from hotfix.container import write_atomically
from hotfix.errors import HubError, SaveError
from hotfix.patch import Patch
from hotfix.report import Report


@dataclass(frozen=True)
class Published:
    """Where a patch is now."""

    repo: str
    version: str
    revision: str  # the commit
    id: str
    new: bool  # False: the very same patch was there already
    evidence: str = ""  # then the commit of main by which its report and signatures are there too


def push(
    patch: Patch, repo: str, *, report: Report | None = None, private: bool | None = None, license: str = ""
) -> Published:
    """Publish a patch as a version of a line: all of it or nothing. The same patch again moves no tag.

    What was measured or signed since then joins it on main, with a new card, while the version is the newest there.

    Args:
        patch: signature files beside its own file go with it.
        repo: `ORG/NAME`, made if it is not there. One repository is one patch line.
        report: what was measured, of this very patch.
        private: whether only members see it. None makes what the organisation prefers, and takes what is there.
        license: of the patch, as the Hub spells it; none is claimed if you do not.

    Raises:
        HubError: this version is there with another patch, the repository holds something else, or the Hub refused.
    """
    repo, revision = hub.place(repo)
    if revision:
        raise HubError("the version is the patch's own", wanted="ORG/NAME", hint=f"hotfix push PATCH {repo}")
    if report is not None and [on.id for on in report.patches][-1:] != [patch.id]:  # as `Report.beside` has it
        hint = "hotfix score, with the patch on, as the last of its stack"
        raise HubError(f"the report is not of {patch.name} {patch.version}", hint=hint)
    files, tag = contents(patch, repo, report, license), hub.tag(patch.version)
    hub.create(repo, private)
    if tag in map(hub.tag, hub.versions(repo)):
        return _there(patch, repo, tag, files)
    head, names = hub.tree(repo)
    if hub.WEIGHTS in names and (name := hub.outline(repo, head).manifest.name) != patch.name:
        raise HubError(
            f"{repo} is the line of {name}", wanted=patch.name, hint="one repository is one patch line: name another"
        )
    left = {name for name in names - files.keys() if name == hub.REPORT or name.endswith((".safetensors", ".sig"))}
    message = f"{patch.name} {patch.version}"
    commit = hub.commit(repo, files, sorted(left), parent=head, message=message)
    if not hub.set_tag(repo, tag, commit, f"{message}\n\n{patch.id}"):
        return _there(patch, repo, tag, files)
    return Published(repo, patch.version, commit, patch.id, new=True)


def contents(patch: Patch, repo: str, report: Report | None, license: str) -> Mapping[str, bytes]:
    """The files of the commit, by name."""
    files = {hub.WEIGHTS: patch.content(), hub.CARD: card.page(patch, repo, report, license).encode()}
    if report is not None:
        files[hub.REPORT] = report.text().encode()
    if patch.source is not None:
        for ending, name in hub.SIGNATURES.items():
            if (file := patch.source.with_name(patch.source.name + ending)).is_file():
                files[name] = file.read_bytes()
    if (kohya := export.kohya(patch)) is not None:  # for those who cannot read the other
        files[f"{patch.name}-{patch.version}_kohya.safetensors"] = kohya
    return files


def unpack(patch: Patch, folder: Path) -> list[Path]:
    """Write a pulled patch, its report and its signatures into a folder, under the names that they have on disks.

    Raises:
        SaveError: a file of such a name is there and is another; then nothing is written.
    """
    stem, cache = f"{patch.name}-{patch.version}", patch.source.parent if patch.source else Path()
    files = {folder / f"{stem}.safetensors": patch.content()}
    names = {f"{stem}.safetensors{ending}": name for ending, name in hub.SIGNATURES.items()}
    for here, there in {f"{stem}.report.json": hub.REPORT, **names}.items():
        if (cache / there).is_file():
            files[folder / here] = (cache / there).read_bytes()
    for path, content in files.items():
        if path.exists() and path.read_bytes() != content:
            raise SaveError(f"{path} is there, and is another", hint="move it away, or choose -o elsewhere")
    for path, content in reversed(files.items()):  # a patch never lies there without its signatures
        write_atomically(path, content)
    return list(files)


def _there(patch: Patch, repo: str, tag: str, files: Mapping[str, bytes]) -> Published:
    """A version that is there is this very patch, or the push is refused."""
    (revision, _), there = hub.tree(repo, tag), hub.outline(repo, tag)
    if there.id != patch.id:
        raise HubError(
            f"{repo} has {there.manifest.name} {patch.version} already, as {there.id[:19]}…",
            wanted=f"{patch.id[:19]}…",
            hint="a published version never changes: give this one a version of its own, and build it",
        )
    done = Published(repo, patch.version, revision, patch.id, new=False)
    evidence = {name: files[name] for name in (hub.REPORT, *hub.SIGNATURES.values()) if name in files}
    head, _ = hub.tree(repo)
    if not evidence or hub.outline(repo, head).id != patch.id:
        return done
    if hub.REPORT in files:
        evidence[hub.CARD] = files[hub.CARD]
    message = f"evidence of {patch.name} {patch.version}"
    return replace(done, evidence=hub.commit(repo, evidence, [], parent=head, message=message))
