"""Ten thousand broken patch files: each is refused in a sentence, at once, and nothing of it is used."""

import itertools
import json
import random
import struct
import time

import pico
import pytest
from patching import random_patch

from hotfix import container
from hotfix.errors import HotfixError
from hotfix.patch import ID_KEY, MANIFEST_KEY, Patch, _check

MUTANTS = 10_000
SLOWEST = 1.0  # seconds


@pytest.fixture(scope="module")
def raw():
    patch = random_patch(pico.ddpm(), "small", 1, rank=1, every=4)
    return container.dump(container.parse(_saved(patch), "file")[0], patch.entries)


def _saved(patch):
    from hotfix.patch import header

    return container.dump(header(patch.manifest, patch.raw, patch.entries), patch.entries)


def parts(raw):
    """Header length, header, body."""
    (length,) = struct.unpack("<Q", raw[:8])
    return length, json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header, body, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def flip(raw, rng):
    at = rng.randrange(len(raw) * 8)
    return raw[: at // 8] + bytes([raw[at // 8] ^ 1 << at % 8]) + raw[at // 8 + 1 :]


def cut(raw, rng):
    return raw[: rng.randrange(len(raw))]


def longer(raw, rng):
    return raw + rng.randbytes(rng.randrange(1, 200))


def overwrite(raw, rng):
    at, size = rng.randrange(len(raw)), rng.randrange(1, 64)
    return raw[:at] + rng.randbytes(size) + raw[at + size :]


def drop(raw, rng):
    at, size = rng.randrange(len(raw)), rng.randrange(1, 64)
    return raw[:at] + raw[at + size :]


def lie_about_the_length(raw, rng):
    length, _, _ = parts(raw)
    lie = rng.choice(
        [0, 1, length - 1, length + 1, length + 8, 1 << 20, (1 << 20) + 1, 100 << 20, 1 << 63, (1 << 64) - 1]
    )
    return struct.pack("<Q", lie) + raw[8:]


def twice(raw, rng):
    length, header, body = parts(raw)
    key = rng.choice(sorted(header))
    text = raw[8 : 8 + length].rstrip().removesuffix(b"}") + b"," + json.dumps({key: header[key]}).encode()[1:]
    return joined(text, body)


def tensor(raw, rng):
    """Something about one tensor."""
    _, header, body = parts(raw)
    key = rng.choice([name for name in header if name != "__metadata__"])
    one = header[key]
    begin, end = one["data_offsets"]
    match rng.randrange(9):
        case 0:
            one["shape"] = [rng.choice([1 << 31, 1 << 62, 1 << 80, -1, 0]) for _ in one["shape"]]
        case 1:
            one["shape"] = [*one["shape"], 1]
        case 2:
            one["dtype"] = rng.choice(["I64", "U8", "F8_E4M3", "BOOL", "", None, 3, "f32"])
        case 3:
            other = rng.choice([name for name in header if name not in (key, "__metadata__")])
            one["data_offsets"] = header[other]["data_offsets"]
        case 4:
            one["data_offsets"] = [begin - 4, end - 4]
        case 5:
            one["data_offsets"] = [begin, 1 << 60]
        case 6:
            one["data_offsets"] = [end, begin]
        case 7:
            header[rng.choice(["../../etc/passwd", "/dev/mem", "a\x00b", "unet.x", "", "__proto__", "C:\\x"])] = (
                header.pop(key)
            )
        case 8:
            del one[rng.choice(sorted(one))]
    return joined(header, body)


def number(raw, rng):
    """Not a number, or no finite one, with a digest that fits."""
    _, header, body = parts(raw)
    key = rng.choice([name for name in header if name != "__metadata__"])
    begin, end = header[key]["data_offsets"]
    at = begin + 4 * rng.randrange((end - begin) // 4)
    bad = struct.pack("<f", rng.choice([float("nan"), float("inf"), float("-inf")]))
    return signed_anew(joined(header, body[:at] + bad + body[at + 4 :]))


def signed_anew(raw):
    """Every derived field made to fit what the tensors are now."""
    from hotfix.manifest import Manifest
    from hotfix.patch import digest, header

    metadata, entries = container.parse(raw, "file")
    manifest = Manifest.parse(metadata[MANIFEST_KEY]).model_copy(update={"digest": digest(entries)})
    return container.dump(header(manifest, manifest.text(), entries), entries)


def metadata(raw, rng):
    _, header, body = parts(raw)
    about = header["__metadata__"]
    match rng.randrange(5):
        case 0:
            about[rng.choice(["alpha", "network_alpha", "lora_alpha", "x"])] = "1"
        case 1:
            del about[rng.choice(sorted(set(about) - {ID_KEY}))]  # files of 0.1 have no id
        case 2:
            about[rng.choice(sorted(about))] = rng.choice([1, None, [], {}, "", "[" * 100_000])
        case 3:
            header["__metadata__"] = rng.choice([[], "x", 1, None])
        case 4:
            manifest = json.loads(about[MANIFEST_KEY])
            key = rng.choice(sorted(set(manifest) - {"request", "created", "tool"}))
            manifest[key] = rng.choice([None, [], "\x00", -1, float("nan"), {"a": {"b": []}}, "x" * 1000])
            about[MANIFEST_KEY] = json.dumps(manifest)
    return joined(header, body)


def deep(raw, rng):
    _, _, body = parts(raw)
    size = rng.choice([1_000, 10_000, 200_000])
    return joined(rng.choice([b"[" * size, b'{"a":' * size, b'{"a":' * size + b"1" + b"}" * size]), body)


def huge_header(raw, rng):
    _, header, body = parts(raw)
    return joined(json.dumps(header).encode() + b" " * rng.choice([1 << 20, 100 << 20]), body)


OFTEN = [flip, cut, longer, overwrite, drop, lie_about_the_length, twice, tensor, number, metadata]
SELDOM = [deep, huge_header]


def mutants(raw):
    rng = random.Random(0)
    for i, mutate in zip(range(MUTANTS), itertools.cycle(OFTEN), strict=False):
        mutant = mutate(raw, rng)
        if mutant != raw:
            yield f"{mutate.__name__} {i}", mutant
    for i, mutate in enumerate(SELDOM * 10):
        yield f"{mutate.__name__} {i}", mutate(raw, rng)


def test_every_mutant_is_refused_in_a_sentence_and_at_once(raw):
    slow, read, count = [], [], 0
    for name, mutant in mutants(raw):
        started = time.perf_counter()
        try:
            about, entries = container.parse(mutant, "file")
            _check(about, entries, "file")
        except HotfixError as error:
            assert str(error) and error.hint, name
        else:
            read.append(name)
        if time.perf_counter() - started > SLOWEST:
            slow.append(name)
        count += 1
    assert count > MUTANTS * 0.99
    assert not read and not slow


def test_the_original_of_all_mutants_is_read(raw, tmp_path):
    path = tmp_path / "small-1.0.0.safetensors"
    path.write_bytes(raw)
    assert Patch.load(path).name == "small"
