"""Manifest: what a patch says about itself. One JSON string in the file's header; its sha256 is the patch's id."""

import hashlib
import json
import os
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hotfix.container import no_duplicates
from hotfix.errors import HotfixError, PatchFormatError, UnsupportedSchema
from hotfix.recipe import PatchName, PatchRequirement, PatchVersion, Revision

SCHEMA_VERSION = 1
# The first release that reads each schema: what an older hotfix tells its user to install.
READ_SINCE = {1: "0.1.0"}

MAX_DEPTH = 128  # a recipe has five, and three more for every time that its patch was merged; pydantic writes 255

AGAIN = "fetch the file again, or build the patch again"

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


def _depth(value: object) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, parts), default=0)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseIdentity(_Part):
    """The weights a patch was made for, recognisable in any dtype.

    `sketch` maps a layer to ⟨W, R⟩/‖W‖ for a seeded ±1 matrix R (hotfix/sketch.py).
    """

    repo: str
    commit: Revision = ""
    pipeline_class: str
    component: str
    component_class: str
    sketch: Annotated[dict[str, float], Field(max_length=16)]  # of no more layers is a base's computed


class Scope(_Part):
    """Where the patch was measured: noise levels t in [t_lo, 1], sizes in pixels, and the call that was used."""

    t_lo: float
    height: int
    width: int
    scheduler: str
    call: dict[str, int | float | str]


class Commitment(_Part):
    """A salted hash of one forget picture: its owner can recognise it, the file does not show it."""

    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(_Part):
    """Schema 1. docs/format.md says which fields MUST, SHOULD and MAY be there."""

    schema_version: int = SCHEMA_VERSION
    name: PatchName
    version: PatchVersion
    digest: Digest
    base: BaseIdentity
    recipe: dict[str, Any]
    requires: list[PatchRequirement] = []
    conflicts: list[PatchRequirement] = []
    supersedes: list[PatchRequirement] = []
    scope: Scope | None  # None: nothing was measured
    targets: list[Commitment]  # empty: none known
    strength: float
    merge_survival: dict[str, float] = {}
    request: str = ""
    created: str
    tool: str

    @classmethod
    def parse(cls, text: str, name: str = "manifest") -> Self:
        """Read a manifest, looking at its schema version before anything else.

        Raises:
            UnsupportedSchema: from a newer hotfix.
            PatchFormatError: not a manifest.
        """
        try:
            data = json.loads(text, object_pairs_hook=no_duplicates)
            json.dumps(data, ensure_ascii=False, allow_nan=False).encode()  # half a surrogate pair is no text
            if not isinstance(data, dict) or type(schema := data.get("schema_version")) is not int:
                raise ValueError("it is no object with a whole schema_version")
            if _depth(data) > MAX_DEPTH:
                raise ValueError(f"it is more than {MAX_DEPTH} levels deep")
        except (ValueError, RecursionError) as error:
            raise PatchFormatError(f"{name}: the manifest is broken: {error}", hint=AGAIN) from error
        if schema != SCHEMA_VERSION:
            needed = READ_SINCE.get(schema)
            raise UnsupportedSchema(
                f"{name} has manifest schema {schema!r}",
                wanted=f"schema {SCHEMA_VERSION}",
                hint=f"pip install 'diffusion-hotfix{f'=={needed}' if needed else f'>{READ_SINCE[SCHEMA_VERSION]}'}'",
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise PatchFormatError(f"{name}: the manifest is broken: {problems}", hint=AGAIN) from error

    def text(self) -> str:
        """The manifest as it is stored: compact JSON with sorted keys."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def now() -> str:
    """UTC, or SOURCE_DATE_EPOCH where a build has to be reproducible to the byte.

    Raises:
        HotfixError: that is no such number.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    except (ValueError, OverflowError, OSError) as error:
        wanted = "whole seconds since 1970"
        raise HotfixError(f"SOURCE_DATE_EPOCH is {epoch!r}", wanted=wanted, hint="set it right, or unset it") from error
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def identity(text: str) -> str:
    """The id of a patch: sha256 over the manifest exactly as stored. Bytes are hashed, never a structure."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
