"""A lock resolves what patches say of one another before it is written, or is not written."""

import pico
import pytest
from patching import random_patch
from test_cli import assert_one_sentence

from hotfix import lock
from hotfix.errors import StackError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "hotfix.lock"


@pytest.fixture
def made(tmp_path):
    """Writes a patch of some relations, and names its file."""
    pipe = pico.sd15()

    def make(name, version="1.0.0", **relations):
        return random_patch(pipe, name, 1, version=version, **relations).save(tmp_path)

    return make


def listed(path):
    return [f"{row.name} {row.version}" for row in lock.rows(path)]


def test_adding_twice_is_adding_once(path, made):
    files = [made("a"), made("b")]
    lock.add(path, files)
    once = path.read_bytes()
    assert lock.add(path, files) == []
    assert path.read_bytes() == once


def test_another_version_takes_the_place_of_the_one_before(path, made):
    lock.add(path, [made("a"), made("b")])
    assert [patch.version for patch in lock.add(path, [made("a", "1.1.0")])] == ["1.0.0"]
    assert listed(path) == ["a 1.1.0", "b 1.0.0"]


def test_what_a_new_patch_supersedes_goes_out(path, made):
    lock.add(path, [made("a"), made("b"), made("c", "2.0.0")])
    gone = lock.add(path, [made("whole", supersedes=["a==1.0.0", "b==1.0.0", "c==1.0.0"])])
    assert [patch.name for patch in gone] == ["a", "b"]
    assert listed(path) == ["c 2.0.0", "whole 1.0.0"]


@pytest.mark.parametrize(
    ("relations", "words"),
    [
        ({"requires": ["b>=1"]}, "new 1.0.0 requires b>=1, which is not in the stack"),
        ({"requires": ["a>=2"]}, "new 1.0.0 requires a>=2, which is not in the stack"),
        ({"conflicts": ["a<2"]}, "new 1.0.0 conflicts with a<2"),
    ],
)
def test_what_cannot_be_resolved_is_not_written(path, made, relations, words):
    lock.add(path, [made("a")])
    before = path.read_bytes()
    with pytest.raises(StackError) as found:
        lock.add(path, [made("new", **relations)])
    assert str(found.value) == words and found.value.hint
    assert path.read_bytes() == before


def test_a_requirement_may_come_in_the_same_step_and_not_go_before_what_requires_it(path, made):
    lock.add(path, [made("above", requires=["below>=1"]), made("below")])
    before = path.read_bytes()
    with pytest.raises(StackError, match=r"above 1\.0\.0 requires below>=1"):
        lock.remove(path, ["below"])
    assert path.read_bytes() == before
    lock.remove(path, ["below", "above"])
    assert listed(path) == []


def test_a_superseded_patch_does_not_come_back(path, made):
    lock.add(path, [made("whole", supersedes=["a==1.0.0"])])
    with pytest.raises(StackError, match=r"whole 1\.0\.0 supersedes a==1\.0\.0"):
        lock.add(path, [made("a")])


def test_a_lock_is_for_one_base(path, made, tmp_path):
    lock.add(path, [made("a")])
    other = random_patch(pico.sd15(seed=1), "other", 1).save(tmp_path)
    with pytest.raises(StackError, match="patches of one base"):
        lock.add(path, [other])
    assert listed(path) == ["a 1.0.0"]


def test_a_bad_lock_is_mended_step_by_step(path, made):
    one, two = made("one", conflicts=["two"]), made("two", requires=["three"])
    lock.save(path, [lock.Patch.load(file) for file in (one, two)])
    lock.remove(path, ["one"])
    assert listed(path) == ["two 1.0.0"]


def test_a_patch_whose_file_is_gone_can_be_taken_out(path, made):
    lock.add(path, [file := made("a"), made("b")])
    file.unlink()
    lock.remove(path, ["a"])
    assert listed(path) == ["b 1.0.0"]


def test_what_another_one_requires_stays_though_its_file_is_gone(path, made):
    lock.add(path, [file := made("below"), made("above", requires=["below>=1"])])
    file.unlink()
    before = path.read_bytes()
    with pytest.raises(StackError, match=r"above 1\.0\.0 requires below>=1"):
        lock.remove(path, ["below"])
    assert path.read_bytes() == before
    lock.remove(path, ["below", "above"])
    assert listed(path) == []


def test_a_new_version_for_a_new_base_takes_the_place_of_the_one_before(path, made, tmp_path):
    lock.add(path, [made("a")])
    lock.add(path, [random_patch(pico.sd15(seed=1), "a", 1, version="2.0.0").save(tmp_path)])
    assert listed(path) == ["a 2.0.0"]
    with pytest.raises(StackError, match="patches of one base"):
        lock.add(path, [made("b")])


@pytest.mark.parametrize("text", ["twice", "conflict"])
def test_status_says_what_speaks_against_a_lock_that_was_merged_by_hand(path, made, inline, text):
    if text == "twice":
        lock.add(path, [made("a")])
        row = path.read_text().partition("[[patches]]")[2]
        path.write_text(f"{path.read_text()}[[patches]]{row}")
    else:
        lock.save(path, [lock.Patch.load(file) for file in (made("a"), made("b", conflicts=["a<2"]))])
    done = inline("status", cwd=path.parent)
    assert [line[:3] for line in done.stdout.splitlines()] == ["ok ", "ok "], "each file is the one that was locked"
    words = {"twice": "a is listed 2 times", "conflict": "b 1.0.0 conflicts with a<2"}
    assert_one_sentence(done, words[text])


def test_verify_names_those_whose_requirements_are_not_there(made, inline, tmp_path):
    below, above = made("below"), made("above", requires=["below>=1"])
    other = made("other", conflicts=["below"])  # several files are not one stack
    assert inline("verify", above, other, below, cwd=tmp_path).returncode == 0
    done = inline("verify", other, above, cwd=tmp_path)
    assert [line[:3] for line in done.stdout.splitlines()] == ["ok ", "BAD"]
    assert_one_sentence(done, "above 1.0.0 requires below>=1, not among these")
    below.write_bytes(b"spoilt")
    assert inline("verify", above, below, cwd=tmp_path).stdout.count("BAD") == 2


@pytest.mark.parametrize(("old", "new"), [('name = "a"', 'name = "faces"'), ('"1.0.0"', '"9.9.9"')])
def test_a_row_that_calls_its_patch_something_else_is_noticed(path, made, old, new, inline):
    lock.add(path, [made("a"), made("b")])
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(StackError, match=r"a-1\.0\.0\.safetensors is a 1\.0\.0"):
        lock.load(path)
    done = inline("status", cwd=path.parent)
    assert done.returncode == 1 and [line[:3] for line in done.stdout.splitlines()] == ["BAD", "ok "]


@pytest.mark.parametrize(("key", "words"), [("strength = 0.1", "strength is nothing"), ("revision = 1", "than text")])
def test_a_row_holds_nothing_that_a_reader_would_pass_over(path, made, key, words):
    lock.add(path, [made("a")])
    path.write_text(path.read_text().replace("name =", f"{key}\nname ="))
    for read in (lock.rows, lock.signers, lock.load):
        with pytest.raises(StackError, match=words):
            read(path)
