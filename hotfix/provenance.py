"""Provenance: how a patch file came to be, as an in-toto statement with a SLSA v1 predicate. A file beside the patch.

It names the bytes that a build wrote, and what only the build can know: when, on what, with which libraries. The patch
stays the same bytes with it or without. Nobody vouches for it: it is as good as the place that it comes from.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hotfix.container import content, write_atomically
from hotfix.manifest import BaseIdentity
from hotfix.patch import Patch

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "pkg:pypi/diffusion-hotfix#build/v1"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy")


def save(made: Mapping[str, Any], file: Path) -> Path:
    """Write a statement beside the patch file that it is about, as NAME-VERSION.provenance.json.

    Raises:
        SaveError: the folder cannot be written.
    """
    path = file.with_name(f"{file.name.removesuffix('.safetensors')}.provenance.json")
    write_atomically(path, json.dumps(made, indent=2, ensure_ascii=False).encode() + b"\n")
    return path


def statement(
    patch: Patch, file: Path, below: Sequence[Patch], *, started: str, finished: str, hardware: str
) -> dict[str, Any]:
    """What can be said of a patch right after it was built. No picture and no local path: the manifest has neither.

    Args:
        patch: what was built.
        file: where it was written.
        below: the patches that it was built on.
        started: when the run began that finished it, UTC; one before, that was killed, is not counted.
        finished: when.
        hardware: what it ran on.
    """
    manifest = patch.manifest
    return {
        "_type": STATEMENT,
        "subject": [
            {
                "name": file.name,
                "digest": {"sha256": hashlib.sha256(content(file)).hexdigest()},
                "annotations": {"hotfix.id": patch.id, "hotfix.name": patch.name, "hotfix.version": patch.version},
            }
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": manifest.recipe},
                "internalParameters": {"hardware": hardware, "platform": platform.platform()},
                "resolvedDependencies": [
                    {"name": "recipe", "digest": {"sha256": sha256(manifest.recipe)}},
                    base(manifest.base),
                    *(
                        {"name": f"{one.name} {one.version}", "digest": {"hotfixId": one.id.removeprefix("sha256:")}}
                        for one in below
                    ),
                    *({"name": library, "uri": package(library)} for library in LIBRARIES),
                ],
            },
            "runDetails": {
                "builder": {"id": package("diffusion-hotfix"), "version": {"python": platform.python_version()}},
                "metadata": {"startedOn": started, "finishedOn": finished},
            },
        },
    }


def base(identity: BaseIdentity) -> dict[str, Any]:
    """The base, by its commit on the Hub where it has one, and always by the sketch of its weights."""
    digest = {"hotfixSketch": sha256(identity.sketch)}
    if not identity.commit:
        return {"name": identity.repo, "digest": digest}
    uri = f"pkg:huggingface/{identity.repo}@{identity.commit}"
    return {"name": identity.repo, "uri": uri, "digest": digest | {"gitCommit": identity.commit}}


def package(name: str) -> str:
    """An installed library as a package URL."""
    return f"pkg:pypi/{name}@{quote(version(name), safe='')}"


def sha256(value: Mapping[str, Any]) -> str:
    """Of the compact JSON with sorted keys, as the manifest holds it."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
