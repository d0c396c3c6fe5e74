"""The door to the Hub: one repository is one patch line, a tag `vX.Y.Z` is a version, a commit is what a lock pins.

Everything that huggingface_hub does is left to it: the cache, resuming, retries, tokens, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from hotfix.errors import HubError, PatchFormatError, SignatureError
from hotfix.hub_errors import ASK, WEIGHTS, browse, offline, sentences
from hotfix.patch import Outline, Patch

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME = "hf://"
REPORT, CARD = "report.json", "README.md"
# Signatures: what follows the name of a patch's file, and their name in the repository.
SIGNATURES = {".sig": f"{WEIGHTS}.sig", ".model.sig": "model.sig"}
WANTED = [WEIGHTS, REPORT, *SIGNATURES.values()]
KIND = "hotfix"  # the tag of a card by which a patch line is found
COMMIT = re.compile(r"[0-9a-f]{40}")


def place(text: str) -> tuple[str, str]:
    """Take `hf://ORG/NAME@VERSION` apart: the repository, and a tag, a commit, or nothing for the newest version.

    Raises:
        HubError: not such a text.
    """
    repo, _, at = text.removeprefix(SCHEME).partition("@")
    try:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            raise InvalidVersion
        return repo, at if not at or COMMIT.fullmatch(at) else tag(at)
    except InvalidVersion:
        raise HubError(
            f"{text!r} names nothing on the Hub",
            wanted="ORG/NAME, ORG/NAME@VERSION or ORG/NAME@COMMIT, of 40 hex digits",
            hint="hotfix list ORG",
        ) from None


def tag(version: str | Version) -> str:
    """The tag of a version."""
    return f"v{Version(str(version))}"


Read = Callable[[Path], Patch]  # a file into a patch, once whatever is asked of the file holds


def pull(reference: str, read: Read = Patch.load) -> Patch:
    """Fetch a patch, once, into huggingface_hub's cache, and distrust it as any file.

    Args:
        reference: `ORG/NAME@VERSION`, `ORG/NAME@COMMIT`, or `ORG/NAME` for the newest version.
        read: how; a lock that asks for signatures looks at them first.

    Raises:
        HubError: not there, not allowed, or not reachable and not in the cache.
        PatchFormatError: what is there is not a patch, or was changed after it was built.
    """
    repo, revision = place(reference)
    return fetch(repo, revision or newest(repo), read)


def fetch(repo: str, revision: str, read: Read = Patch.load) -> Patch:
    """The patch of a tag or a commit; `source` is its file in the cache, `pulled` says which commit that is of."""
    folder = _folder(repo, revision)
    try:
        patch = read(_weights(folder, repo, revision))
    except (PatchFormatError, SignatureError):  # of a bad file, whoever asks for signatures hears that it has none
        if offline():
            raise
        folder = _folder(repo, revision, force_download=True)  # a cache that was cut off
        patch = read(_weights(folder, repo, revision))
    if not COMMIT.fullmatch(revision) and tag(patch.version) != revision:
        raise HubError(
            f"{repo} at {revision} holds {patch.name} {patch.version}",
            wanted=f"{revision}, as its tag says",
            hint="its tag was moved: ask who published it",
        )
    return replace(patch, pulled=f"{SCHEME}{repo}@{folder.name}")


def _folder(repo: str, revision: str, **options: Any) -> Path:
    """The cache's folder of a commit. Where a commit is in it whole, the Hub is not asked."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    fetch = partial(_api().snapshot_download, repo, revision=revision, allow_patterns=WANTED)
    with sentences(f"{repo} at {revision}"):
        if COMMIT.fullmatch(revision) and not options:
            with suppress(LocalEntryNotFoundError):
                return Path(fetch(local_files_only=True))
        return Path(fetch(**options))


def _weights(folder: Path, repo: str, revision: str) -> Path:
    if not (folder / WEIGHTS).exists():
        raise HubError(f"{repo} at {revision} holds no {WEIGHTS}", wanted="a patch", hint=browse(repo))
    return folder / WEIGHTS


def outline(repo: str, revision: str) -> Outline:
    """What the header of a published patch says: a request for some kilobytes, however large the patch is."""
    name = f"{repo} at {revision}"
    with sentences(name):
        try:
            found = _api().parse_safetensors_file_metadata(repo, WEIGHTS, revision=revision)
        except (AttributeError, TypeError, RecursionError) as error:  # JSON, but not such as the client expects
            raise PatchFormatError(f"{name} does not begin as a safetensors file", hint=ASK) from error
    tensors = {key: vars(tensor) for key, tensor in found.tensors.items()}
    return Outline.of({"__metadata__": found.metadata} | tensors, name)


def look(reference: str) -> Outline:
    """The outline of what `pull` would fetch."""
    repo, revision = place(reference)
    return outline(repo, revision or newest(repo))


def versions(repo: str) -> list[Version]:
    """The published versions of a line, oldest first."""
    with sentences(repo):
        names = [ref.name for ref in _api().list_repo_refs(repo).tags]
    found = []
    for name in names:
        try:
            if name == tag(name):
                found.append(Version(name))
        except InvalidVersion:
            pass  # somebody's own tag
    return sorted(found)


def newest(repo: str, found: Sequence[Version] | None = None) -> str:
    """The tag of the newest version, of those found if you have them; a pre-release only if there is nothing else."""
    if not (found := versions(repo) if found is None else found):
        raise HubError(f"{repo} has no published version", wanted="a tag such as v1.0.0", hint="hotfix push PATCH REPO")
    return tag(max(found, key=lambda version: (not version.is_prerelease, version)))


def lines(org: str) -> list[str]:
    """The repositories of an organisation that say they hold a patch line."""
    with sentences(org):
        return sorted(model.id for model in _api().list_models(author=org, filter=KIND))


# What publishing needs, and in this order.


def create(repo: str, private: bool | None) -> None:
    """Make a repository, unless it is there. What shall be private must not be there for all to see."""
    with sentences(repo):
        _api().create_repo(repo, private=private, exist_ok=True)
        if private and not _api().model_info(repo).private:
            raise HubError(f"{repo} is there already, and public", wanted="a private one", hint="name another")


def tree(repo: str, revision: str = "main") -> tuple[str, set[str]]:
    """The commit that a branch or a tag names, and the names of its files."""
    with sentences(f"{repo} at {revision}"):
        found = _api().model_info(repo, revision=revision)
    return str(found.sha), {file.rfilename for file in found.siblings or []}


def commit(repo: str, files: Mapping[str, bytes], gone: Iterable[str], *, parent: str, message: str) -> str:
    """All files in one commit on top of `parent`, or an error. Files that are there as they are need none."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    changes: list[Any] = [CommitOperationAdd(name, content) for name, content in files.items()]
    changes += [CommitOperationDelete(name) for name in gone]
    with sentences(repo):
        return _api().create_commit(repo, changes, commit_message=message, parent_commit=parent).oid


def set_tag(repo: str, name: str, commit: str, message: str) -> bool:
    """Tag a commit, and say whether the tag is new: one that is there is never moved."""
    from huggingface_hub.errors import HfHubHTTPError

    with sentences(repo):
        try:
            _api().create_tag(repo, tag=name, tag_message=message, revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            return False
    return True


def front_matter(facts: Mapping[str, Any], results: Iterable[Mapping[str, Any]]) -> str:
    """The YAML at the top of a card, with its model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    found = [EvalResult(**result) for result in results]
    return f"---\n{ModelCardData(**facts, eval_results=found or None).to_yaml()}\n---\n"


def numbers(file: Path) -> int:
    """How many numbers a safetensors file holds, of a patch or of a base, from its header; 0 if that is broken."""
    from huggingface_hub import parse_local_safetensors_file_metadata
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        return sum(parse_local_safetensors_file_metadata(file).parameter_count.values())
    except SafetensorsParsingError:  # whoever loads it says what is wrong with it
        return 0


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(library_name="hotfix")
