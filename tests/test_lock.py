"""A lock resolves what patches say of one another before it is written, or is not written."""

import pico
import pytest
from patching import random_patch

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
