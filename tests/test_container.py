"""The strict reader and the canonical writer."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as stock_load
from safetensors.torch import save as stock_save

from hotfix import container
from hotfix.container import Entry
from hotfix.errors import PatchFormatError, SaveError
from hotfix.patch import Outline

names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@st.composite
def files(draw):
    tensors = {}
    for name in draw(st.sets(names.filter(lambda n: n != "__metadata__"), max_size=5)):
        dtype, shape = draw(st.sampled_from(sorted(container.ITEM_BYTES))), draw(shapes)
        size = container.ITEM_BYTES[dtype]
        for side in shape:
            size *= side
        tensors[name] = Entry(dtype, shape, memoryview(draw(st.binary(min_size=size, max_size=size))))
    return draw(st.dictionaries(names, names, max_size=4)), tensors


@given(files())
def test_what_is_written_is_read(content):
    metadata, tensors = content
    found_metadata, found = container.parse(container.dump(metadata, tensors), "file")
    assert found_metadata == metadata
    assert found == tensors


@given(files())
def test_same_content_same_bytes_whatever_the_order(content):
    metadata, tensors = content
    backwards = dict(reversed(metadata.items())), dict(reversed(tensors.items()))
    assert container.dump(*backwards) == container.dump(metadata, tensors)


@given(files())
def test_stock_safetensors_reads_it(content):
    metadata, tensors = content
    assert {k: tuple(t.shape) for k, t in stock_load(container.dump(metadata, tensors)).items()} == {
        k: entry.shape for k, entry in tensors.items()
    }


@given(files(), st.data())
def test_cut_anywhere_it_is_refused(content, data):
    raw = container.dump(*content)
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(PatchFormatError):
        container.parse(raw[:cut], "file")


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused_in_a_sentence(raw):
    with pytest.raises(PatchFormatError):
        container.parse(raw, "file")


def _file(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def _span(begin, end):
    return {"dtype": "F32", "shape": [1], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (
            _file(
                b'{"a":' + json.dumps(_span(0, 4)).encode() + b',"a":' + json.dumps(_span(0, 4)).encode() + b"}",
                b"1234",
            ),
            "twice",
        ),
        (_file(json.dumps({"a": _span(0, 4), "b": _span(8, 12)}).encode(), b"x" * 12), "said to lie"),
        (_file(json.dumps({"a": _span(0, 4), "b": _span(2, 6)}).encode(), b"x" * 6), "said to lie"),
        (_file(json.dumps({"a": _span(0, 4)}).encode(), b"x" * 9), "follow the last tensor"),
        (_file(b" " * ((1 << 20) + 1)), "at most 1 MB"),
        (b"PK\x03\x04" + b"x" * 100, "pickle or a zip"),
        (b"\x80\x04" + b"x" * 100, "pickle or a zip"),
        (
            _file(json.dumps({"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}).encode(), b"x" * 8),
            "dtype I64",
        ),
        (_file(json.dumps({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}).encode(), b"x" * 4), "whole"),
    ],
)
def test_what_a_canonical_writer_would_not_write_is_refused(raw, words):
    with pytest.raises(PatchFormatError, match=words):
        container.parse(raw, "file")


@pytest.mark.parametrize("shape", [[10**4000, 10**4000], [1 << 30] * 500, [1 << 31], [1.0], [True]], ids=len)
def test_a_shape_that_no_file_could_hold_is_refused_in_a_sentence(shape):
    """Also where its product has more digits than Python writes out."""
    header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
    with pytest.raises(PatchFormatError, match="whole numbers"):
        container.parse(_file(json.dumps(header).encode(), b"1234"), "file")
    with pytest.raises(PatchFormatError, match="whole numbers"):
        Outline.of(header, "what a Hub says")


@pytest.mark.parametrize("depth", [900, 985, 995, 2000, 100_000])
def test_a_header_of_any_depth_is_refused_in_a_sentence(depth):
    with pytest.raises(PatchFormatError):
        container.parse(_file(b'{"__metadata__":{"a":' + b"[" * depth + b"]" * depth + b"}}"), "file")


@pytest.mark.parametrize(
    "header",
    [{"__metadata__": {"a": "\ud800"}}, {"__metadata__": {"\udc00": "a"}}, {"\ud800": _span(0, 4)}],
)
def test_text_that_no_writer_could_write_is_refused(header):
    with pytest.raises(PatchFormatError, match="surrogates not allowed"):
        container.parse(_file(json.dumps({"b": _span(0, 4)} | header).encode(), b"1234"), "file")


def test_no_length_of_a_header_is_taken_for_a_pickle():
    beginnings = set()
    for size in range(1, 1600, 8):
        raw = stock_save({"x" * size: torch.zeros(1)})
        beginnings.add(raw[:2])
        assert list(container.parse(raw, "file")[1]) == ["x" * size]
    assert {b"\x80\x02", b"\x80\x04", b"\x80\x05"} <= beginnings


def test_tensors_lie_on_64_byte_boundaries_when_their_sizes_do():
    raw = container.dump(
        {}, {"a": Entry("F32", (16,), memoryview(b"a" * 64)), "b": Entry("F32", (32,), memoryview(b"b" * 128))}
    )
    assert (8 + struct.unpack("<Q", raw[:8])[0]) % 64 == 0
    assert raw.endswith(b"b" * 128 + b"a" * 64)


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    container.write_atomically(path, b"old")

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(container.os, "fsync", full)
    with pytest.raises(SaveError, match="No space left"):
        container.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_readable_by_a_service_user(tmp_path):
    container.write_atomically(tmp_path / "file", b"x")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
