"""The safetensors container, read strictly and written canonically, without torch: `hotfix show` needs nothing else.

Stock readers accept duplicate keys, and stock writers put the metadata in random order. A file whose identity and
safety matter can afford neither: this reader refuses everything that a canonical writer would not have written.
"""

import contextlib
import json
import math
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotfix.errors import PatchFormatError, SaveError

ALIGNMENT = 64  # bytes: a memory-mapped tensor then computes the same last bits as a copied one
MAX_HEADER, MAX_FILE = 1 << 20, 1 << 30  # bytes
MAX_SHAPE = 8  # numbers: two more than any tensor of a diffusers model has
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
NOT_A_PATCH = "a patch is one .safetensors file; nothing else is ever read, least of all a pickle"


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: safetensors' dtype name, its shape, and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True)
class Span:
    """One tensor as the header speaks of it: from `begin` to before `end`, in bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes that a tensor of this dtype and shape takes."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


def content(path: Path) -> bytes:
    """The bytes of a file: not mapped, for what was checked must be what is used.

    Raises:
        PatchFormatError: unreadable, or over 1 GiB.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise PatchFormatError(f"{path} is {size} bytes", wanted="at most 1 GiB", hint=NOT_A_PATCH)
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a NUL in the path is no OSError
        raise PatchFormatError(f"cannot read {path}: {_reason(error)}", hint="check the path") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def read(path: Path) -> tuple[dict[str, str], dict[str, Entry]]:
    """Return the metadata and the tensors of a file.

    Raises:
        PatchFormatError: unreadable, not safetensors, or with duplicate keys, gaps, overlaps, trailing bytes, a header
            over 1 MB, or over 1 GiB in all.
    """
    return parse(content(path), str(path))


def parse(raw: bytes, name: str) -> tuple[dict[str, str], dict[str, Entry]]:
    """`read` for bytes already at hand; `name` is for the error messages."""
    # The first bytes of a safetensors file are a length, which may be any: only what follows tells it from a pickle.
    if raw[8:9] != b"{" and raw[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"):
        raise PatchFormatError(f"{name} is a pickle or a zip archive", wanted="a safetensors file", hint=NOT_A_PATCH)
    if len(raw) < 8 or (length := struct.unpack("<Q", raw[:8])[0]) > max(len(raw) - 8, 0) or length > MAX_HEADER:
        raise PatchFormatError(
            f"{name} is {len(raw)} bytes and does not begin with a safetensors header of at most 1 MB",
            hint=f"{NOT_A_PATCH}; if this one was downloaded, it may be cut off",
        )
    try:
        header = json.loads(raw[8 : 8 + length], object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _broken(name, error) from error
    body = memoryview(raw)[8 + length :]
    metadata, spans = layout(header, name, len(body))
    if (at := max((span.end for span in spans.values()), default=0)) != len(body):
        raise PatchFormatError(f"{name}: {len(body) - at} bytes follow the last tensor", hint="fetch the file again")
    return metadata, {key: Entry(span.dtype, span.shape, body[span.begin : span.end]) for key, span in spans.items()}


def layout(header: Any, name: str, length: int = MAX_FILE) -> tuple[dict[str, str], dict[str, Span]]:
    """Check a header by itself: metadata of strings, known dtypes, and tensors end to end within a length in bytes."""
    try:
        metadata = header.get("__metadata__", {})
        spans = {key: _span(value) for key, value in header.items() if key != "__metadata__"}
        json.dumps([metadata, *spans], ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _broken(name, error) from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise PatchFormatError(f"{name}: the metadata is not a map of strings", hint=NOT_A_PATCH)
    spans = dict(sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end)))
    at = 0
    for key, span in spans.items():
        if span.begin != at or span.end - at != span.size or span.end > length:
            raise PatchFormatError(
                f"{name}: tensor {key} is said to lie at bytes {span.begin} to {span.end}",
                wanted=f"{span.size} bytes from {at} on, of {length} there are",
                hint="the file is cut off or was tampered with; fetch it again",
            )
        at = span.end
    return metadata, spans


def _broken(name: str, error: Exception) -> PatchFormatError:
    return PatchFormatError(f"{name}: the safetensors header is broken ({error})", hint=NOT_A_PATCH)


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `json.loads`. Raises ValueError for a key that stands there twice."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a key stands there twice")
    return dict(pairs)


def _span(value: Mapping[str, Any]) -> Span:
    dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise ValueError(f"dtype {dtype}; a patch holds {', '.join(ITEM_BYTES)}")
    if len(shape) > MAX_SHAPE or not all(
        type(number) is int and 0 <= number <= MAX_FILE for number in (*shape, begin, end)
    ):
        raise ValueError(f"shapes, of at most {MAX_SHAPE}, and offsets are whole numbers, at most {MAX_FILE}")
    return Span(dtype, shape, begin, end)


def dump(metadata: Mapping[str, str], tensors: Mapping[str, Entry]) -> bytes:
    """Same content, same bytes: keys sorted, big tensors first so that all are aligned, header padded to 64 bytes."""
    order = sorted(tensors, key=lambda key: (-tensors[key].data.nbytes, key))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    at = 0
    for key in order:
        entry = tensors[key]
        end = at + entry.data.nbytes
        header[key] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return b"".join([struct.pack("<Q", len(text)), text, *(tensors[key].data for key in order)])


def write_atomically(path: Path, content: bytes, ready: Callable[[], object] = lambda: None) -> None:
    """Write a file whole or not at all, with mode 0644.

    Args:
        path: where.
        content: what.
        ready: called when all is on the disk, under another name as yet; what it raises leaves nothing behind.

    Raises:
        SaveError: the disk is full, or the folder cannot be written; nothing is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        ready()
        temporary.replace(path)
    except OSError as error:
        raise SaveError(
            f"cannot write {path}: {error.strerror}",
            hint="nothing was written; free some space, see what lies there, or write elsewhere",
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def private_files(*contents: bytes) -> Iterator[list[Path]]:
    """Contents as files that nobody else can change, for programs that only read files."""
    with tempfile.TemporaryDirectory(prefix="hotfix-") as folder:
        paths = [Path(folder, str(number)) for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        yield paths
