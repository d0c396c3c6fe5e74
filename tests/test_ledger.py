"""A ledger finds every change of itself but the loss of its end, and a lock does not change without a line in it."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pico
import pytest
from conftest import make_recipe, picture
from hypothesis import given
from hypothesis import strategies as st
from patching import random_patch

from hotfix import chain, ledger, lock
from hotfix.chain import Ref
from hotfix.cli_log import approve, log
from hotfix.cli_sign import distrust, sign, trust
from hotfix.cli_stack import merge
from hotfix.container import write_atomically
from hotfix.errors import HotfixError, LedgerError, SaveError, StackError
from hotfix.patch import Patch

HOTFIX = Path(sys.executable).with_name("hotfix")
PATCHES = Path(__file__).parents[1] / "patches"
DOCS = Path(__file__).parents[1] / "docs"
ONE = Ref(name="one", version="1.0.0", id=f"sha256:{'1' * 64}", request="TICKET-1")


def hotfix(*arguments, cwd, prefix=(), **environment):
    return subprocess.run(
        [*prefix, HOTFIX, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )


def written(folder):
    return [json.loads(line) for line in (folder / "hotfix.log.jsonl").read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "hotfix.lock"


@pytest.fixture
def files(tmp_path):
    names = ("syria-2025", "iraq-2008", "honduras-2022")
    return [Path(shutil.copy(next((PATCHES / name).glob("*.safetensors")), tmp_path)) for name in names]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A ledger of six lines."""
    path = tmp_path_factory.mktemp("ledger") / "hotfix.log.jsonl"
    for number in range(6):
        ledger.append(path, "approved", [ONE], note=f"zwölf {number}\n\x1b[1m")
    return path.read_bytes()


def lines(raw):
    return raw.splitlines(keepends=True)


@given(data=st.data())
def test_any_changed_byte_is_found_in_its_line(raw, data):
    at = data.draw(st.integers(0, len(raw) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[at]))
    with pytest.raises(LedgerError) as found:
        chain.entries(raw[:at] + bytes([byte]) + raw[at + 1 :], "it")
    number = raw[:at].count(b"\n") + 1
    assert f"line {number} of it" in str(found.value) or f"within line {number}" in str(found.value)


@given(data=st.data())
def test_lines_in_another_order_or_number_are_found(raw, data):
    rows = lines(raw)
    order = data.draw(st.lists(st.integers(0, 5), max_size=8))
    text = b"".join(rows[i] for i in order)
    if order == list(range(len(order))):
        assert len(chain.entries(text, "it")) == len(order)  # a beginning is a ledger too: see below
    else:
        wrong = next(i for i, (number, row) in enumerate(zip(range(9), order, strict=False)) if number != row)
        with pytest.raises(LedgerError, match=f"^line {wrong + 1} of it is number {order[wrong] + 1}"):
            chain.entries(text, "it")


@given(cut=st.integers(1, 10_000))
def test_a_torn_end_is_found_and_the_hint_mends_it(raw, cut):
    torn = raw[: -min(cut, len(raw) - 1)]
    whole = torn.count(b"\n")
    if torn.endswith(b"\n"):
        assert len(chain.entries(torn, "it")) == whole
        return
    with pytest.raises(LedgerError) as found:
        chain.entries(torn, "it")
    if torn + b"\n" == b"".join(lines(raw)[: whole + 1]):
        assert found.value.hint == "echo >> it"
    else:
        size = int(found.value.hint.removeprefix("truncate -s ").split()[0])
        assert len(chain.entries(torn[:size], "it")) == whole


def test_what_the_chain_alone_cannot_find_a_noted_head_does(path, raw, capsys):
    """Lines cut off, and a chain that was made anew."""
    ledger.beside(path).write_bytes(raw)
    log(lock_file=path, json=True)
    head = json.loads(capsys.readouterr().out)["head"]
    ledger.append(ledger.beside(path), "approved", [ONE])
    log(lock_file=path, expect=head)
    forged = []
    for entry in chain.entries(raw, "it"):
        said = entry.model_dump(exclude={"n", "previous", "digest", "by"})
        forged.append(chain.follow(forged[-1] if forged else None, by="somebody else", **said))
    for other in (b"".join(lines(raw)[:5]), b"".join(entry.line() for entry in forged)):
        ledger.beside(path).write_bytes(other)
        log(lock_file=path)
        with pytest.raises(LedgerError, match="has no line sha256:"):
            log(lock_file=path, expect=head)


def test_the_page_says_how_to_verify_it_without_hotfix(tmp_path, raw):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "ledger.md").read_text(), flags=re.DOTALL)
    book = tmp_path / "it.jsonl"
    for content in (raw, raw.replace(b"zw", b"Zw", 1), b"".join(lines(raw)[1:])):
        book.write_bytes(content)
        done = subprocess.run([sys.executable, "-I", "-c", code, book], capture_output=True, text=True, timeout=60)
        assert (done.returncode == 0) is (content == raw), done.stderr
        assert content != raw or done.stdout == f"{chain.entries(raw, 'it')[-1].digest}\n"


def test_nothing_that_a_line_holds_makes_two_of_it_or_colours_a_terminal(path, raw, capsys):
    ledger.beside(path).write_bytes(raw)
    log(lock_file=path)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 7 and "\x1b" not in out and "zwölf 5" in out


def test_lines_of_a_newer_hotfix_are_read_and_followed(path):
    new = {"more": {"than": [1, "2"]}}
    said = {"at": "2030-01-01T00:00:00Z", "by": "a", "verb": "frobnicated", "patches": [ONE], **new}
    ledger.beside(path).write_bytes(chain.follow(None, **said).line())
    ledger.append(ledger.beside(path), "approved", [ONE])
    assert [one.verb for one in ledger.read(path)[0]] == ["frobnicated", "approved"]


def test_processes_that_write_at_once_make_one_chain(path):
    code = (
        "import sys; from pathlib import Path; from hotfix import ledger\n"
        "for n in range(40): ledger.append(Path(sys.argv[1]), 'approved', [], note=f'{sys.argv[2]} {n}')"
    )
    book = ledger.beside(path)
    started = [subprocess.Popen([sys.executable, "-c", code, book, str(one)]) for one in range(3)]
    assert [one.wait(60) for one in started] == [0, 0, 0]
    notes = [entry.facts["note"] for entry in ledger.read(path)[0]]
    assert sorted(notes) == sorted(f"{one} {n}" for one in range(3) for n in range(40))
    assert notes != sorted(notes), "they took no turns: nothing was tried"


def test_every_change_of_a_lock_is_a_line_and_nothing_else_is(path, files, monkeypatch):
    monkeypatch.setenv("HOTFIX_ACTOR", "flags desk")
    lock.add(path, files[:2])
    lock.add(path, files[:1])  # it is there
    with pytest.raises(StackError):
        lock.remove(path, ["nobody"])
    lock.remove(path, ["syria-2025"])
    stack = [Patch.load(file) for file in (files[2], files[1])]
    lock.save(path, stack)
    lock.save(path, stack[::-1])
    found, now = ledger.read(path)
    told = [(one.verb, [ref.name for ref in one.patches], one.by) for one in found]
    assert told == [
        ("added", ["syria-2025", "iraq-2008"], "flags desk"),
        ("removed", ["syria-2025"], "flags desk"),
        ("added", ["honduras-2022"], "flags desk"),
        ("rewritten", ["iraq-2008", "honduras-2022"], "flags desk"),
    ]
    assert found[0].patches[0].id == Patch.load(files[0]).id
    assert found[0].patches[0].request == Patch.load(files[0]).manifest.request
    assert now == found[-1].lock.after == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert not chain.remarks(found)


def test_what_makes_room_is_in_the_line(path, tmp_path):
    pipe = pico.sd15()
    for version in ("1.0.0", "1.1.0"):
        lock.add(path, [random_patch(pipe, "a", 1, version=version).save(tmp_path)])
    entry = ledger.read(path)[0][1]
    assert [f"{one.name} {one.version}" for one in (*entry.patches, *entry.out)] == ["a 1.1.0", "a 1.0.0"]


def test_a_ledger_that_cannot_be_written_keeps_the_lock_as_it_is(path, files):
    """A quota of a few bytes more than the ledger has stands in for a full disk."""
    lock.add(path, files[:1])
    book, before = ledger.beside(path), path.read_bytes()
    while book.stat().st_size < 4096:
        ledger.append(book, "approved", [ONE])
    kept = book.read_bytes()
    quota = ("prlimit", f"--fsize={len(kept) + 100}")
    done = hotfix("add", files[1], cwd=path.parent, prefix=quota)
    assert done.returncode == 1 and "cannot write hotfix.log.jsonl: No space left" in done.stderr, done.stderr
    assert (path.read_bytes(), book.read_bytes()) == (before, kept)
    assert sorted(one.name for one in path.parent.iterdir() if one.suffix != ".safetensors") == [path.name, book.name]


def test_a_torn_ledger_keeps_the_lock_as_it_is(path, files):
    lock.add(path, files[:1])
    before, book = path.read_bytes(), ledger.beside(path)
    with book.open("ab") as file:
        file.write(b'{"at":"20')
    for change in (lambda: lock.add(path, files[1:]), lambda: lock.remove(path, ["syria-2025"])):
        with pytest.raises(LedgerError, match="ends within line 2"):
            change()
    with pytest.raises(LedgerError, match="ends within line 2"):
        ledger.notes(path)
    assert path.read_bytes() == before


def test_a_change_that_was_cut_short_is_a_line_without_a_change_and_is_said(path, files):
    """The process ends at the very call that would put the new lock in place."""
    code = (
        "import os, sys; from hotfix.cli import main\n"
        "sys.addaudithook(lambda event, told: os._exit(9) if event == 'os.rename' else None)\n"
        "main(['add', *sys.argv[1:]])"
    )
    lock.add(path, files[:1])
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", code, files[1]], cwd=path.parent, timeout=60)
    assert done.returncode == 9 and path.read_bytes() == before
    told = hotfix("log", cwd=path.parent)
    assert told.returncode == 1 and "hotfix.lock is as before line 2: what it says was interrupted" in told.stderr
    lock.add(path, files[1:2])
    found, now = ledger.read(path)
    assert chain.remarks(found) == {2: chain.UNDONE} and found[-1].lock.after == now


def test_a_change_without_hotfix_is_said_at_once_and_stays_in_the_record(path, files, capsys):
    lock.add(path, files)
    text = path.read_bytes()
    path.write_bytes(text + b"# by hand\n")
    with pytest.raises(LedgerError, match="as line 1 left it"):
        log(lock_file=path)
    lock.remove(path, ["syria-2025"])
    capsys.readouterr()
    log(lock_file=path)
    assert "changed without hotfix before" in capsys.readouterr().out.splitlines()[1]


def test_two_that_change_a_lock_at_once_lose_nothing(path, files):
    """Each is done or refused with a sentence; what was refused is given again."""
    left = list(files[:2])
    while left:
        started = [
            subprocess.Popen([HOTFIX, "add", one], cwd=path.parent, stderr=subprocess.PIPE, text=True) for one in left
        ]
        words = [process.communicate(timeout=60)[1] for process in started]
        refused = [one for one, process in zip(left, started, strict=True) if process.returncode]
        assert all(not said or "was changed meanwhile" in said for said in words), words
        assert len(refused) < len(left)
        left = refused
    assert {row.name for row in lock.rows(path)} == {Patch.load(one).name for one in files[:2]}
    found, now = ledger.read(path)
    assert len(found) == 2 and found[-1].lock.after == now and not chain.remarks(found)


def test_a_lock_that_was_seen_is_the_one_that_is_written_over(path, files):
    lock.add(path, files[:1])
    seen = ledger.state(path)
    lock.add(path, files[1:2])
    with pytest.raises(StackError, match="was changed meanwhile"):
        lock.save(path, [], seen=seen)
    assert len(lock.rows(path)) == 2


def test_what_fails_while_it_is_staged_leaves_nothing(tmp_path):
    def refuse():
        raise SaveError("no", hint="")

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(SaveError):
        write_atomically(tmp_path / "file", b"new", ready=refuse)
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"old"]


def test_work_that_is_done_says_so_when_its_line_cannot_be_written(path):
    note = ledger.notes(path, begin=True)
    ledger.beside(path).mkdir()
    with pytest.raises(SaveError, match=r"^built, but that is not in the ledger: cannot write .*: Is a directory"):
        note("built", [ONE])


def test_where_there_is_no_ledger_only_those_who_may_begin_one(path):
    ledger.notes(path)("pushed", [ONE])
    assert not ledger.beside(path).exists()
    ledger.notes(path, begin=True)("built", [ONE])
    ledger.notes(path)("pushed", [ONE])
    assert [one.verb for one in ledger.read(path)[0]] == ["built", "pushed"]


def test_who_signs_merges_and_trusts_is_in_it(path, files, monkeypatch):
    monkeypatch.chdir(path.parent)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "key"], check=True)
    ledger.beside(path).touch()
    sign(files[0], key=Path("key"))
    trust((Path("key.pub"),), lock_file=path)
    lock.add(path, files[:1])
    distrust([one.name for one in lock.signers(path)], allow_unsigned=True, lock_file=path)
    merge(files[:2], out=Path("both-1.0.0.safetensors"))
    told, now = ledger.read(path)
    assert [one.verb for one in told] == ["signed", "trusted", "added", "distrusted", "merged"]
    assert told[0].facts["signature"] == chain.sha256(files[0].with_name(files[0].name + ".sig").read_bytes())
    assert told[1].facts["trusted"] == told[3].facts["distrusted"] != []
    assert told[4].patches == [ledger.ref(Patch.load("both-1.0.0.safetensors"))] and told[3].lock.after == now


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full disk is a device of Linux")
def test_what_was_done_is_in_it_though_nobody_could_be_told(path, files):
    ledger.beside(path).touch()
    with open("/dev/full", "w") as full:
        merged = [HOTFIX, "merge", *files[:2], "-o", "both-1.0.0.safetensors"]
        assert subprocess.run(merged, cwd=path.parent, stdout=full, stderr=subprocess.PIPE).returncode != 0
    assert (path.parent / "both-1.0.0.safetensors").exists()
    assert [line["verb"] for line in written(path.parent)] == ["merged"]


def test_an_approval_names_its_evidence_or_is_refused(path, capsys, monkeypatch):
    monkeypatch.setenv("HOTFIX_ACTOR", "ute\udc80")
    patch = next((PATCHES / "syria-2025").glob("*.safetensors"))
    with pytest.raises(HotfixError, match="is not of syria-2025"):
        approve(patch, report=PATCHES / "iraq-2008" / "report.json", lock_file=path)
    report = PATCHES / "syria-2025" / "report.json"
    above = json.loads(report.read_text())
    above["patches"].append({"name": "above", "version": "1.0.0", "id": ONE.id})
    (path.parent / "above.json").write_text(json.dumps(above))
    with pytest.raises(HotfixError, match="is not of syria-2025"):  # of another one, with this one beneath it
        approve(patch, report=path.parent / "above.json", lock_file=path)
    assert not ledger.beside(path).exists()
    approve(patch, report=report, note="as asked", lock_file=path, json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["facts"] == {
        "note": "as asked",
        "recipe": "syria-2025 1.0.0",
        "report": f"sha256:{hashlib.sha256(report.read_bytes()).hexdigest()}",
        "within_budget": True,
    }
    assert (said["verb"], said["by"], said["patches"][0]["id"]) == ("approved", "ute?", Patch.load(patch).id)


def test_the_story_of_a_patch_through_the_command_line(tmp_path, inline, monkeypatch):
    """Build, approve, add, apply, remove; the record holds nothing of the forget picture and no place on this disk."""
    base = tmp_path / "somewhere" / "pico"
    pico.ddpm().save_pretrained(base)
    make_recipe(tmp_path, "ddpm")
    picture(1).save(tmp_path / "forget" / "one.png")
    (tmp_path / "recipe.toml").write_text(
        f'name = "quarters"\nrequest = "TICKET-17"\n[base]\npipeline = "{base}"\ncall = {{ num_inference_steps = 3 }}\n'
        '[forget]\nimages = ["forget/*.png"]\n[surrogate]\nkind = "files"\nimages = ["surrogate/*.png"]\n'
        "[retain]\nsize = 16\n[train]\nrank = 2\nsteps = 2\nbatch = 2\nretain_batch = 2\n"
    )
    file = "dist/quarters-1.0.0.safetensors"
    heavy = {"build", "apply"}  # what they import takes seconds, and other tests start them as processes
    commands = [
        (("build", "recipe.toml", "-n", "2"), "training team", 3),
        (("approve", file, "--note", "seen"), "flags desk", 0),
        (("add", file), "operations", 0),
        (("apply", base, "-o", "patched"), "operations", 0),
        (("rm", "quarters"), "operations", 0),
        (("log", "quarters"), "auditor", 0),
    ]
    for words, who, code in commands:
        monkeypatch.setenv("HOTFIX_ACTOR", who)
        done = (inline if words[0] in heavy else hotfix)(*words, cwd=tmp_path)
        assert done.returncode == code, done.stderr
    told, patch = written(tmp_path), Patch.load(tmp_path / file)
    assert [(one["verb"], one["by"]) for one in told] == [
        ("built", "training team"),
        ("scored", "training team"),
        ("approved", "flags desk"),
        ("added", "operations"),
        ("applied", "operations"),
        ("removed", "operations"),
    ]
    assert all(ref["id"] == patch.id for one in told for ref in one["patches"]) and patch.id[:19] in done.stdout
    assert [ref.get("request") for one in told for ref in one["patches"]] == ["TICKET-17"] * 5 + [None]
    report = hashlib.sha256((tmp_path / "dist/quarters-1.0.0.report.json").read_bytes()).hexdigest()
    assert told[1]["facts"] == {"recipe": "quarters 1.0.0", "report": f"sha256:{report}", "within_budget": False}
    assert told[2]["facts"] == told[1]["facts"] | {"note": "seen"}
    assert told[4]["facts"] == {"copy": "patched", "dtype": "float32", "pipeline": "pico"}
    assert {one["at"] for one in told} == {"2023-11-14T22:13:20Z"}  # SOURCE_DATE_EPOCH
    forget = tmp_path / "forget" / "one.png"
    secrets = [
        str(tmp_path),
        "one.png",
        "forget/",
        hashlib.sha256(forget.read_bytes()).hexdigest(),
        hashlib.sha256(picture(1).tobytes()).hexdigest(),
        *(word for one in patch.manifest.targets for word in (one.salt, one.sha256)),
    ]
    text = (tmp_path / "hotfix.log.jsonl").read_text()
    assert len(secrets) == 7 and not [word for word in secrets if word in text]


def test_a_copy_is_not_made_without_its_line(tmp_path, monkeypatch):
    from hotfix import patched_copy
    from hotfix.stack import Stack

    def refuse():
        raise SaveError("no line", hint="")

    pipe = pico.ddpm()
    stack = Stack.of(random_patch(pipe, "a", 1))
    with pytest.raises(HotfixError, match="no line"):
        patched_copy.save_folded(stack, pipe, tmp_path / "copy", "float32", ready=refuse)
    assert not list(tmp_path.iterdir())
