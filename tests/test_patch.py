"""The file format: one identity, one digest, and nothing accepted that was not written by a canonical writer."""

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hotfix import container
from hotfix.errors import DigestMismatch, PatchFormatError, UnsupportedSchema
from hotfix.manifest import Manifest, identity
from hotfix.patch import ID_KEY, MANIFEST_KEY, Patch
from hotfix.sketch import LAYERS

GOLDEN = Path(__file__).parent / "golden"
REPORT = Path(__file__).parents[1] / "patches/mauritania-2017/report.json"


@pytest.fixture
def saved(patches, tmp_path):
    return patches[0].save(tmp_path)


def rewritten(path, change_metadata=lambda m: m, change_tensors=lambda t: t):
    metadata, tensors = container.read(path)
    path.write_bytes(container.dump(change_metadata(dict(metadata)), change_tensors(dict(tensors))))
    return path


def test_round_trip_keeps_id_and_bytes(patches, saved, tmp_path):
    again = Patch.load(saved)
    assert again.id == patches[0].id
    assert again.save(tmp_path / "again").read_bytes() == saved.read_bytes()
    assert all(torch.equal(again.tensors[k], patches[0].tensors[k]) for k in patches[0].tensors)


def test_the_golden_file_of_every_schema_loads_forever(tmp_path):
    for path in sorted(GOLDEN.glob("*.safetensors")):
        expected = json.loads(path.with_suffix(".json").read_text())
        patch = Patch.load(path)
        assert (patch.id, patch.manifest.digest) == (expected["id"], expected["digest"])
        again = patch.save(tmp_path)
        assert Patch.load(again) == patch
        metadata, tensors = container.read(again)
        if ID_KEY not in container.read(path)[0]:  # as files of 0.1 were written
            del metadata[ID_KEY]
        assert container.dump(metadata, tensors) == path.read_bytes()
    assert list(GOLDEN.glob("schema-1.safetensors"))


def test_no_byte_of_the_tensors_can_change_unnoticed(saved):
    raw = bytearray(saved.read_bytes())
    for at in range(len(raw) - 1, len(raw) - 2000, -97):
        changed = bytearray(raw)
        changed[at] ^= 1
        saved.write_bytes(changed)
        with pytest.raises(DigestMismatch):
            Patch.load(saved)


def test_a_renamed_tensor_is_noticed(saved):
    def rename(tensors):
        old = next(name for name in tensors if name.endswith("lora_A.weight"))
        layer = old.removesuffix(".lora_A.weight")
        for half in ("A", "B"):
            tensors[f"{layer}x.lora_{half}.weight"] = tensors.pop(f"{layer}.lora_{half}.weight")
        return tensors

    with pytest.raises(PatchFormatError):
        Patch.load(rewritten(saved, change_tensors=rename))


def test_an_extra_tensor_is_refused(saved):
    entry = container.Entry("F32", (1,), memoryview(b"1234"))
    with pytest.raises(PatchFormatError, match="more or less than pairs"):
        Patch.load(rewritten(saved, change_tensors=lambda t: t | {"bias": entry}))


@pytest.mark.parametrize("key", ["alpha", "network_alpha", "lora_alpha", "anything"])
def test_header_keys_that_other_programs_would_read_are_refused(saved, key):
    with pytest.raises(PatchFormatError, match="header disagrees"):
        Patch.load(rewritten(saved, change_metadata=lambda m: m | {key: "4"}))


def test_a_patched_manifest_has_another_id(patches, saved):
    def approve(metadata):
        text = metadata[MANIFEST_KEY].replace("TICKET-1", "TICKET-2")
        return metadata | {MANIFEST_KEY: text, ID_KEY: identity(text)}

    assert Patch.load(rewritten(saved, change_metadata=approve)).id != patches[0].id


def test_a_manifest_that_changed_by_itself_is_refused(saved):
    def decay(metadata):
        return metadata | {MANIFEST_KEY: metadata[MANIFEST_KEY].replace("TICKET-1", "TICKET-3")}

    with pytest.raises(PatchFormatError, match="header disagrees"):
        Patch.load(rewritten(saved, change_metadata=decay))


@pytest.mark.parametrize("found", ["\ud800", r"\ud800"], ids=["header", "manifest"])
def test_half_a_character_is_bad_and_keeps_no_other_file_from_being_verified(saved, tmp_path, inline, found):
    raw = saved.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    said = header["__metadata__"]
    said[MANIFEST_KEY] = said[MANIFEST_KEY].replace('"recipe":{', f'"recipe":{{"words":"{found}",')
    del said[ID_KEY]  # as whoever wrote this would
    text = json.dumps(header).encode()
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    for words in (("show", bad), ("show", bad, "--json"), ("add", bad)):
        assert inline(*words, cwd=tmp_path).returncode == 1
    done = inline("verify", bad, saved, cwd=tmp_path)
    assert done.returncode == 1 and [line[:3] for line in done.stdout.splitlines()] == ["BAD", "ok "]


def test_a_sketch_of_more_layers_than_are_compared_is_refused(saved):
    def more(metadata):
        said = json.loads(metadata[MANIFEST_KEY])
        said["base"]["sketch"] |= {f"layer-{i}": 0.0 for i in range(1 + LAYERS - len(said["base"]["sketch"]))}
        text = json.dumps(said)
        return metadata | {MANIFEST_KEY: text, ID_KEY: identity(text)}

    with pytest.raises(PatchFormatError, match=f"base.sketch: .*at most {LAYERS} items"):
        Patch.load(rewritten(saved, change_metadata=more))


def deep(levels):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"name":', '"requires":["x>=9"],"name":', "twice"),
        ('"recipe":{', '"recipe":{"a":1,"a":2,', "twice"),
        ('"strength":', '"strength":NaN,"x":', "not JSON compliant"),
        ('"recipe":{', '"recipe":{"a":1e999,', "not JSON compliant"),
        ('"schema_version":1', '"schema_version":true', "whole schema_version"),
        ('"schema_version":1', '"schema_version":1.0', "whole schema_version"),
        ('"recipe":{', f'"recipe":{{"a":{deep(200)},', "levels deep"),
        ('"recipe":{', f'"recipe":{{"a":{deep(900)},', ""),
        ('"recipe":{', f'"recipe":{{"a":{deep(20_000)},', ""),
        ('"commit":""', '"commit":"main"', "base.commit"),
    ],
    ids=lambda text: text[:20],
)
def test_a_manifest_that_readers_would_read_differently_is_refused(saved, tmp_path, inline, old, new, words):
    def changed(metadata):
        assert old in metadata[MANIFEST_KEY]
        text = metadata[MANIFEST_KEY].replace(old, new, 1)
        return metadata | {MANIFEST_KEY: text, ID_KEY: identity(text)}

    done = inline("show", rewritten(saved, change_metadata=changed), cwd=tmp_path)
    assert done.returncode == 1 and "the manifest is broken: " in done.stderr and words in done.stderr


@pytest.mark.parametrize(
    "recipe", [{"train": 5}, {"train": {"augment": [1]}}, {"train": {"augment": 1}}, {"a": [[[]]]}]
)
def test_a_patch_whose_recipe_is_any_is_shown(patches, tmp_path, inline, recipe):
    said = patches[0].manifest.model_copy(update={"recipe": recipe})
    path = Patch(said.text(), patches[0].entries).save(tmp_path)
    for words in (("show", path), ("show", path, "--json")):
        done = inline(*words)
        assert done.returncode == 0 and "views" not in done.stdout


@pytest.mark.parametrize("kind", ["sound", "empty", "deep"])
def test_a_report_that_is_none_is_not_repeated(patches, tmp_path, inline, kind):
    path, said = patches[0].save(tmp_path), json.loads(REPORT.read_text())
    said["patches"][0]["id"] = patches[0].id
    if kind == "empty":
        said["replays"] = []
    path.with_suffix(".report.json").write_text(deep(100_000) if kind == "deep" else json.dumps(said))
    if kind == "sound":
        assert "before the patch" in inline("show", path).stdout
        return
    done = inline("show", path)
    assert done.returncode == 0 and "before the patch" not in done.stdout
    done = inline("approve", path, cwd=tmp_path)
    assert done.returncode == 1 and "is not a hotfix report" in done.stderr


def test_show_obeys_no_words_of_a_patch(patches, tmp_path, inline):
    said = patches[0].manifest.model_copy(update={"request": "one\x1b[2K\x1b[1A\x9b31m\ntwo"})
    path = Patch(said.text(), patches[0].entries).save(tmp_path)
    out = inline("show", path).stdout
    assert "request      one [2K [1A 31m two\n" in out
    assert all(letter == "\n" or letter.isprintable() for letter in out)


def test_an_unknown_schema_names_what_to_install(saved):
    def future(metadata):
        return metadata | {MANIFEST_KEY: json.dumps(json.loads(metadata[MANIFEST_KEY]) | {"schema_version": 2})}

    with pytest.raises(UnsupportedSchema, match="schema 2") as caught:
        Patch.load(rewritten(saved, change_metadata=future))
    assert "pip install 'diffusion-hotfix>" in caught.value.hint


def test_a_pickle_by_another_name_is_refused(tmp_path):
    path = tmp_path / "patch.safetensors"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(PatchFormatError, match="pickle or a zip"):
        Patch.load(path)


def test_a_foreign_lora_is_refused(tmp_path):
    save_file({"unet.a.lora_A.weight": torch.zeros(1, 2)}, tmp_path / "style.safetensors")
    with pytest.raises(PatchFormatError, match="no hotfix manifest"):
        Patch.load(tmp_path / "style.safetensors")


def test_neither_pictures_nor_their_names_nor_paths_are_in_the_file(saved, tmp_path):
    raw = saved.read_bytes()
    for secret in (b"one.png", b"forget/", str(tmp_path).encode(), b"/tmp"):
        assert secret not in raw


def test_the_manifest_round_trips_as_text(patches):
    assert Manifest.parse(patches[0].raw).text() == patches[0].raw


def test_a_patch_is_a_value(patches, saved):
    """In a set, for another process, and as a copy: equal to what it was, and never taken for another."""
    read = replace(Patch.load(saved), pulled="hf://acme/quarters@" + "0" * 40)
    for patch in (patches[0], read):
        for copied in (pickle.loads(pickle.dumps(patch)), copy.deepcopy(patch)):
            assert copied == patch and (copied.source, copied.pulled) == (patch.source, patch.pulled)
            assert {copied, patch, patches[1]} == {patch, patches[1]}
            assert all(torch.equal(copied.tensors[key], patch.tensors[key]) for key in patch.tensors)
    other = pickle.dumps(Patch(patches[0].raw, patches[1].entries))
    with pytest.raises(PatchFormatError):
        pickle.loads(other)


def test_a_patch_in_a_log_is_a_line(patches):
    assert repr(patches[0]).startswith("Patch(quarters-1 1.0.0, sha256:") and len(repr(patches[0])) < 100
