"""Patch: LoRA factors and their manifest in one safetensors file. docs/format.md is the specification.

Reading and checking need no torch; `.tensors` does, and imports it when it is first asked for.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open

from hotfix import container
from hotfix.container import Entry, Span
from hotfix.errors import DigestMismatch, PatchFormatError, UnsupportedSchema
from hotfix.manifest import AGAIN, Manifest, identity

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST_KEY = "hotfix.manifest"
ID_KEY = "hotfix.id"  # so that a flipped bit in the manifest is found without a lock; files of 0.1 have none
PEFT_KEY = "lora_adapter_metadata"  # the one header key that stock diffusers reads
A, B = ".lora_A.weight", ".lora_B.weight"
FOREIGN = ("lora_unet_", "base_model.model.")  # how every name in an exported file begins, and none in a patch
UNWRITTEN = (OSError, SafetensorError)  # what a stock writer of safetensors raises where a disk is full


def digest(entries: Mapping[str, Entry]) -> str:
    """sha256 over name, dtype, shape and bytes of every tensor, in name order."""
    h = hashlib.sha256()
    for name, entry in sorted(entries.items()):
        h.update(f"{name}\0{entry.dtype}\0{entry.shape}\0".encode())
        h.update(entry.data)
    return f"sha256:{h.hexdigest()}"


def to_torch(entries: Mapping[str, Entry]) -> dict[str, "Tensor"]:
    """The tensors of a file, in torch."""
    from safetensors.torch import load

    return load(container.dump({}, entries))


def plain(path: Path) -> dict[str, "Tensor"]:
    """The tensors of a safetensors file, in torch. Raises PatchFormatError for any other, or a patch, even broken."""
    from safetensors.torch import load

    try:
        tensors = load(path.read_bytes())
    except OSError as error:
        raise PatchFormatError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except SafetensorError as error:
        raise PatchFormatError(f"{path} is not safetensors: {error}", hint=container.NOT_A_PATCH) from error
    try:
        found = Patch.load(path)
    except PatchFormatError as error:
        # What hotfix export wrote for other readers names its patch, too, but has none of a patch's tensors.
        broken = {MANIFEST_KEY, ID_KEY} & said(path).keys() and not all(key.startswith(FOREIGN) for key in tensors)
        if broken or isinstance(error, UnsupportedSchema):
            raise
        return tensors
    raise PatchFormatError(f"{path} is {found.name} {found.version}, a patch already", hint=f"hotfix add {path}")


def said(path: Path) -> dict[str, str]:
    """The header metadata of any safetensors file."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def from_torch(tensors: Mapping[str, "Tensor"]) -> dict[str, Entry]:
    """Torch tensors as the tensors of a file."""
    from safetensors.torch import save

    return container.parse(save({name: tensor.contiguous() for name, tensor in tensors.items()}), "tensors")[1]


@dataclass(frozen=True)
class Patch:
    """An immutable patch. Make one with `hotfix.build`, or read one with `Patch.load`."""

    raw: str  # the manifest exactly as stored: the thing that is hashed
    entries: Mapping[str, Entry]
    source: Path | None = field(default=None, compare=False)  # the file it was read from
    pulled: str = field(default="", compare=False)  # where that file came from: hf://ORG/NAME@COMMIT

    def __repr__(self) -> str:  # not the bytes of every tensor
        return f"Patch({self.name} {self.version}, {self.id[:19]}…, {len(self.layers)} layers)"

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:  # as its file, which is checked again: views of memory are not pickled
        return type(self).parse, (self.dump(), self.source or Path()), {"source": self.source, "pulled": self.pulled}

    @cached_property
    def manifest(self) -> Manifest:
        """What the patch says about itself."""
        return Manifest.parse(self.raw)

    @cached_property
    def id(self) -> str:
        """sha256 of the manifest as stored, which holds the digest of the tensors."""
        return identity(self.raw)

    @property
    def name(self) -> str:
        """The patch line, such as `mauritania-2017`."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """A PEP 440 version."""
        return self.manifest.version

    @cached_property
    def layers(self) -> list[str]:
        """The patched layers, with their component: `transformer.transformer_blocks.0.attn.to_q`."""
        return sorted(key.removesuffix(A) for key in self.entries if key.endswith(A))

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(entry.data.nbytes for entry in self.entries.values())

    @cached_property
    def tensors(self) -> dict[str, "Tensor"]:
        """The factors as torch tensors, under stock diffusers' names."""
        return to_torch(self.entries)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a patch and distrust it: container, keys, shapes, schema and digest.

        Raises:
            PatchFormatError: not a patch. Its children say more: UnsupportedSchema, DigestMismatch.
        """
        return cls.parse(container.content(Path(path)), Path(path))

    @classmethod
    def parse(cls, content: bytes, path: Path) -> Self:
        """`load` for the content of a file already at hand."""
        metadata, entries = container.parse(content, str(path))
        _check(metadata, entries, str(path))
        return cls(metadata[MANIFEST_KEY], entries, path)

    def dump(self) -> bytes:
        """The file: the same patch always gives the same bytes."""
        return container.dump(header(self.manifest, self.raw, self.entries), self.entries)

    def save(self, path: str | Path) -> Path:
        """Write `NAME-VERSION.safetensors` into a folder (or a file of your choice, ending in .safetensors).

        Returns:
            The path written. The same patch always gives the same bytes.

        Raises:
            SaveError: disk full or folder not writable; nothing half-written is left.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            path = path / f"{self.name}-{self.version}.safetensors"
        container.write_atomically(path, self.dump())
        return path

    def content(self) -> bytes:
        """The bytes of the file that it was read from, which a signature may speak of; else those that `save` writes.

        Raises:
            PatchFormatError: the file is gone, or is another one by now.
        """
        if self.source is None:
            return self.dump()
        raw = container.content(self.source)
        if type(self).parse(raw, self.source).raw != self.raw:
            raise PatchFormatError(f"{self.source} is another patch than when it was read", hint="load it again")
        return raw


@dataclass(frozen=True)
class Outline:
    """What the header of a patch says, tensors unread: nobody has seen yet whether they are the ones it speaks of."""

    raw: str
    layers: list[str]
    size: int  # bytes of the tensors

    @cached_property
    def manifest(self) -> Manifest:
        """What the patch says about itself."""
        return Manifest.parse(self.raw)

    @property
    def id(self) -> str:
        """As a patch's."""
        return identity(self.raw)

    @classmethod
    def of(cls, header: Any, name: str) -> Self:
        """Check a safetensors header, as a mapping, in all that can be checked without the tensors.

        Raises:
            PatchFormatError: not the header of a patch.
        """
        metadata, spans = container.layout(header, name)
        _check_header(metadata, spans, name)
        layers = sorted(key.removesuffix(A) for key in spans if key.endswith(A))
        return cls(metadata[MANIFEST_KEY], layers, sum(span.size for span in spans.values()))


def header(manifest: Manifest, raw: str, entries: Mapping[str, Entry | Span]) -> dict[str, str]:
    """All header metadata. Everything but the manifest is derived from it, and compared when a patch is read."""
    ranks = {entry.shape[0] for key, entry in entries.items() if key.endswith(A)}
    component = manifest.base.component
    modules = sorted(key.removesuffix(A).removeprefix(f"{component}.") for key in entries if key.endswith(A))
    metadata = {
        "format": "pt",
        MANIFEST_KEY: raw,
        ID_KEY: identity(raw),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{manifest.base.component_class}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"{manifest.name} {manifest.version}",
        "modelspec.hash_sha256": f"0x{manifest.digest.removeprefix('sha256:')}",
    }
    if len(ranks) == 1:
        rank = ranks.pop()
        config = {f"{component}.lora_alpha": rank, f"{component}.r": rank, f"{component}.target_modules": modules}
        metadata[PEFT_KEY] = json.dumps(config, sort_keys=True)
    return metadata


def _check(metadata: Mapping[str, str], entries: Mapping[str, Entry], name: str) -> None:
    manifest = _check_header(metadata, entries, name)
    check_finite(entries, name)
    if (found := digest(entries)) != manifest.digest:
        raise DigestMismatch(
            f"{name}: the tensors have {found[:19]}…",
            wanted=f"{manifest.digest[:19]}…, as the manifest says",
            hint="the file was changed after it was built; fetch it again",
        )


def _check_header(metadata: Mapping[str, str], entries: Mapping[str, Entry | Span], name: str) -> Manifest:
    if MANIFEST_KEY not in metadata:
        raise PatchFormatError(
            f"{name} is a safetensors file, but holds no hotfix manifest",
            hint="an ordinary LoRA is not a patch; `hotfix build RECIPE` makes one, `hotfix import FILE` wraps one",
        )
    manifest = Manifest.parse(metadata[MANIFEST_KEY], name)
    check_factors(manifest.base.component, entries, name)
    wanted = header(manifest, metadata[MANIFEST_KEY], entries)
    if {ID_KEY: wanted[ID_KEY]} | dict(metadata) != wanted:
        raise PatchFormatError(f"{name}: the header disagrees with the manifest", hint="fetch the file again")
    return manifest


def check_factors(component: str, entries: Mapping[str, Entry | Span], name: str) -> None:
    """Raise PatchFormatError for anything but pairs of factors of one component."""
    layers = {key.removesuffix(A) for key in entries if key.endswith(A)}
    if not layers or set(entries) != {layer + suffix for layer in layers for suffix in (A, B)}:
        raise PatchFormatError(
            f"{name} holds more or less than pairs of LoRA factors",
            wanted=f"*{A} and *{B}",
            hint=f"{AGAIN}; what hotfix export wrote is for other readers",
        )
    for layer in layers:
        a, b = entries[layer + A].shape, entries[layer + B].shape
        linear = len(a) == len(b) == 2
        conv = len(a) == len(b) == 4 and b[2:] == (1, 1)
        if not layer.startswith(f"{component}.") or not (linear or conv) or a[0] != b[1] or not a[0]:
            raise PatchFormatError(
                f"{name}: {layer} has factors of shape {a} and {b}",
                wanted=f"(r, in) and (out, r) of a Linear, or of a Conv2d with a 1x1 second factor, in {component}",
                hint=AGAIN,
            )


def check_finite(entries: Mapping[str, Entry], name: str) -> None:
    """Raise PatchFormatError for a number that is none."""
    for key, entry in entries.items():
        if not finite(entry):
            raise PatchFormatError(f"{name}: {key} holds numbers that are not finite", hint=AGAIN)


def finite(entry: Entry) -> bool:
    """Whether every number of a tensor is one. An exponent of ones means that it is not."""
    kind, exponent = {
        "F64": (np.uint64, 0x7FF << 52),
        "F32": (np.uint32, 0xFF << 23),
        "BF16": (np.uint16, 0xFF << 7),
        "F16": (np.uint16, 0x1F << 10),
    }[entry.dtype]
    bits = np.frombuffer(entry.data, kind)
    return not bool(((bits & kind(exponent)) == exponent).any())
