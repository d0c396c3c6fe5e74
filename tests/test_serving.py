"""A server whose stack changes while it draws: real uvicorn, real requests, the example's application."""

import asyncio
import io
import itertools
import logging
import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pico
import pytest
from app import Own, create, draw
from patching import random_patch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from servers import running

from hotfix import ledger, lock, signing
from hotfix.errors import HotfixError, StackError
from hotfix.patch import Patch
from hotfix.serving import MAX_LOCK, HotfixMiddleware
from hotfix.signer import signers
from hotfix.stack import Stack, applied

TOKEN = "a-token-of-the-tests"
CALL = {"guidance_scale": 2.0, "max_sequence_length": 4, "height": 16, "width": 16}


@pytest.fixture
def pipe():
    return pico.sd3()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Three patches for the pico base, and one for another."""
    shelf = tmp_path_factory.mktemp("shelf")
    for seed in (1, 2, 3):
        random_patch(pico.sd3(), f"quarters-{seed}", seed).save(shelf)
    random_patch(pico.sd3(seed=1), "foreign", 1).save(shelf)
    return shelf


@pytest.fixture
def folder(shelf, tmp_path):
    """A server's folder."""
    return shutil.copytree(shelf, tmp_path / "served")


@pytest.fixture
def stack(folder):
    """Names to the stack of those patches."""
    return lambda *names: Stack.of(*(Patch.load(folder / f"{name}-1.0.0.safetensors") for name in names))


@pytest.fixture
def text(stack, tmp_path):
    """Names to the text of a lock."""
    return lambda *names: stack(*names).save(tmp_path / "wanted.lock").read_text()


@pytest.fixture
def client(pipe, folder):
    with (
        running(create(pipe, token=TOKEN, patches=folder, **CALL)) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client


def put(client, text, **headers):
    """A change as it should be asked for; headers may spoil it."""
    etag = client.get("/hotfix/status").headers["etag"]
    good = {"authorization": f"Bearer {TOKEN}", "content-type": "application/toml", "if-match": etag}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {name: value for name, value in (good | given).items() if value is not None}
    return client.put("/hotfix/stack", content=text, headers=sent)


def picture(client, seed=0):
    made = client.post("/generate", json={"prompt": "a", "seed": seed, "steps": 2})
    assert made.status_code == 200, made.text
    return made.content, made.headers["x-hotfix-stack"]


def names(client):
    return [row["name"] for row in client.get("/hotfix/status").json()["patches"]]


def test_every_picture_under_traffic_is_of_the_stack_that_its_response_names(client, pipe, text, stack):
    locks = [text("quarters-1"), text(), text("quarters-2", "quarters-3"), text("quarters-3", "quarters-2")]
    bare, seeds = pico.sd3(), range(3)
    bare.set_progress_bar_config(disable=True)
    wanted = {}
    for order in (["quarters-1"], [], ["quarters-2", "quarters-3"], ["quarters-3", "quarters-2"]):
        with stack(*order).on(bare):
            made = bare("a", num_inference_steps=1, **CALL)
            for seed in seeds:
                wanted[getattr(made, "hotfix", "none"), seed] = draw(Own(bare), "a", seed, 2, **CALL)
    assert len(wanted) == 12
    stop = threading.Event()

    def traffic(first):
        return [
            (*picture(client, seed), seed) for seed in itertools.takewhile(lambda _: not stop.is_set(), endless(first))
        ]

    def endless(first):
        return (seeds[(first + i) % len(seeds)] for i in itertools.count())

    with ThreadPoolExecutor(4) as pool:
        made = [pool.submit(traffic, first) for first in range(4)]
        for text_ in itertools.islice(itertools.cycle(locks), 12):
            answer = put(client, text_)
            assert answer.status_code == 200, answer.text
            time.sleep(0.05)
        stop.set()
        answers = [answer for found in made for answer in found.result()]
    assert len({name for _, name, _ in answers}) > 1 and len(answers) > 8
    for png, name, seed in answers:
        assert png == wanted[name, seed], name


def test_a_picture_that_began_before_a_change_names_the_stack_that_it_began_with(pipe, folder, text):
    """And one response with several pictures names all of their stacks."""
    begun, changed = threading.Event(), threading.Event()

    async def app(scope, receive, send):
        def two():
            def wait(pipe_, step, t, kwargs):
                begun.set()
                changed.wait(60)
                return kwargs

            pipe("a", num_inference_steps=2, callback_on_step_end=wait, **CALL)
            pipe("a", num_inference_steps=1, **CALL)

        await asyncio.to_thread(two)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    server = HotfixMiddleware(app, pipe, token=TOKEN, patches=folder)
    with (
        running(server) as address,
        httpx.Client(base_url=address, timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        for order in (["quarters-1"], ["quarters-2"], []):
            before = client.get("/hotfix/status").json()["stack"]
            begun.clear(), changed.clear()
            made = pool.submit(client.get, "/")
            assert begun.wait(60)
            assert put(client, text(*order)).status_code == 200
            changed.set()
            after = client.get("/hotfix/status").json()["stack"]
            assert made.result().headers["x-hotfix-stack"] == f"{before}, {after}"


def test_a_response_without_a_picture_names_none(client, text):
    assert put(client, text("quarters-1")).headers["x-hotfix-stack"] == "none"
    refused = client.post("/generate", json={"prompt": "a", "seed": 0, "steps": 10**9})
    assert (refused.status_code, refused.headers["x-hotfix-stack"]) == (400, "none")


BAD = {
    "no token": (401, {"authorization": None}),
    "another token": (401, {"authorization": "Bearer another-token-of-the-tests"}),
    "no bearer": (401, {"authorization": TOKEN}),
    "another type": (415, {"content_type": "multipart/form-data; boundary=x"}),
    "no type": (415, {"content_type": None}),
    "no condition": (428, {"if_match": None}),
    "any condition": (412, {"if_match": "*"}),
    "another state": (412, {"if_match": '"none.0123456789abcdef"'}),
    "a page in a browser": (403, {"origin": "http://127.0.0.1"}),
    "another name": (403, {"host": "attacker.example"}),
    "half a name": (403, {"host": "[::1"}),
    "a proxy": (403, {"x_forwarded_for": "127.0.0.1"}),
}
ROW = 'lock-version = 1\n[[patches]]\nname = "{}"\nversion = "1.0.0"\nid = "{}"\nsource = "x"\n'
BODIES = {
    "binary": b"\xff\x00",
    "not a lock": b"a = 1",
    "too deep": b"a = " + b"[" * 3000 + b"]" * 3000,
    "of a newer hotfix": b"lock-version = 2",
    "a row that is none": b'lock-version = 1\npatches = ["x"]',
    "a patch that is not there": ROW.format("absent", "sha256:0").encode(),
    "another id": ROW.format("quarters-2", "sha256:0").encode(),
    "a way out": ROW.format("../served/quarters-2", "sha256:0").encode(),
    "a name with an end": ROW.format("quarters-2\\u0000", "sha256:0").encode(),
    "lines for the log": ROW.format("x\\n2026-01-01 stack changed", "sha256:0").encode(),
    "too large": b"#" * (MAX_LOCK + 1),
    "too large in chunks": [b"#" * 1024] * (MAX_LOCK // 1024 + 1),
}


@pytest.fixture
def on(client, text, caplog):
    """With a patch on, and a look at the log from here on; afterwards just that is on."""
    assert put(client, text("quarters-1")).status_code == 200
    before = picture(client), client.get("/hotfix/status").headers["etag"]
    caplog.set_level(logging.INFO, "hotfix.serving")
    caplog.clear()
    yield
    (record,) = caplog.get_records("call")
    assert record.levelname == "WARNING" and "\n" not in record.getMessage()
    assert TOKEN not in record.getMessage() and "another-token" not in record.getMessage()
    assert (picture(client), client.get("/hotfix/status").headers["etag"]) == before


@pytest.mark.parametrize("case", BAD)
def test_who_may_not_change_the_stack_does_not(client, text, on, case):
    status, headers = BAD[case]
    assert put(client, text("quarters-2"), **headers).status_code == status


@pytest.mark.parametrize("case", BODIES)
def test_what_is_no_lock_changes_nothing(client, on, folder, case):
    body = BODIES[case]
    answer = put(client, iter(body) if isinstance(body, list) else body)
    assert answer.status_code == (413 if case.startswith("too large") else 422)
    assert set(answer.json()) == {"found", "wanted", "hint"} and answer.json()["hint"]
    assert str(folder) not in answer.text
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".safetensors") == [
        lock.LOCK,
        "hotfix.log.jsonl",
    ]


def test_a_patch_for_another_base_changes_nothing(client, text, on):
    answer = put(client, text("quarters-2", "foreign"))
    assert answer.status_code == 422 and "was made for" in answer.json()["found"]


def test_a_token_that_is_sent_twice_is_none(client, text, on):
    etag = client.get("/hotfix/status").headers["etag"]
    good = [("authorization", f"Bearer {TOKEN}"), ("content-type", "application/toml"), ("if-match", etag)]
    assert client.put("/hotfix/stack", content=text(), headers=[*good, good[0]]).status_code == 401


def test_a_replayed_change_is_refused_even_where_the_stack_is_again_as_it_was(client, text):
    etag = client.get("/hotfix/status").headers["etag"]
    assert put(client, text("quarters-1"), if_match=etag).status_code == 200
    assert put(client, text()).status_code == 200
    assert put(client, text("quarters-1"), if_match=etag).status_code == 412
    assert names(client) == []


def test_another_machine_gets_no_answer(pipe, folder):
    """A scope such as a server makes of a request to another of its addresses."""
    server, sent = create(pipe, token=TOKEN, patches=folder, **CALL), []

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    for client in (("192.0.2.1", 1234), ("unix", 0), None):
        for method, path in (("PUT", "/hotfix/stack"), ("GET", "/hotfix/status"), ("GET", "/hotfix/metrics")):
            sent.clear()
            headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {TOKEN}".encode())]
            scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": client}
            asyncio.run(server(scope, receive, send))
            assert sent[0]["status"] == 403


def test_whoever_allows_it_is_reached_from_elsewhere(pipe, folder, text):
    server = HotfixMiddleware(None, pipe, token=TOKEN, patches=folder, allow_remote=True)
    with running(server) as address, httpx.Client(base_url=address) as client:
        assert put(client, text("quarters-1"), host="pictures.example", x_forwarded_for="192.0.2.1").status_code == 200
        assert put(client, text(), authorization="Bearer x").status_code == 401


def test_other_paths_and_methods_are_refused(client):
    assert client.get("/hotfix/").status_code == 404
    assert client.post("/hotfix/stack").status_code == 405


def test_one_change_at_a_time_and_nobody_waits_for_it(client, folder, text, tmp_path):
    """The first one reads its patch from a pipe that nobody has written to yet."""
    file = folder / "quarters-2-1.0.0.safetensors"
    wanted, content = text("quarters-2"), file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(put, client, wanted)
        while put(client, text("quarters-1"), if_match='"x"').status_code != 409:
            time.sleep(0.01)
        assert picture(client)[1] == "none" and names(client) == []
        file.write_bytes(content)
        assert first.result().status_code == 200
    assert names(client) == ["quarters-2"]


def test_the_same_stack_again_is_no_change(client, text, folder):
    first = put(client, text("quarters-1"))
    again = put(client, text("quarters-1"))
    assert again.status_code == 200 and again.headers["etag"] == first.headers["etag"]
    assert again.json() == first.json()


def test_a_new_start_puts_on_what_was_on(client, text, folder, stack):
    put(client, text("quarters-2", "quarters-1"))
    under = picture(client)
    other = pico.sd3()
    with (
        running(create(other, token=TOKEN, patches=folder, **CALL)) as address,
        httpx.Client(base_url=address) as again,
    ):
        assert picture(again) == under
    assert [one.name for one in applied(other)] == ["quarters-2", "quarters-1"]


def test_a_server_does_not_start_without_its_stack(pipe, folder, stack):
    stack("foreign").save(folder / lock.LOCK)
    with pytest.raises(HotfixError, match="was made for"):
        create(pipe, token=TOKEN, patches=folder)
    stack().save(folder / lock.LOCK)
    stack("quarters-1").apply(pipe)
    with pytest.raises(StackError, match="1 others do"):
        create(pipe, token=TOKEN, patches=folder)


def test_a_short_token_is_refused(pipe, folder):
    for token in ("x" * 15, "x" * 15 + "\n"):
        with pytest.raises(HotfixError, match="the token has 15 characters"):
            create(pipe, token=token, patches=folder)


@pytest.mark.parametrize("token", [f"{TOKEN}\n{TOKEN}", TOKEN + "é", TOKEN + "\x7f"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(pipe, folder, token):
    with pytest.raises(HotfixError, match="letters that cannot be sent") as found:
        create(pipe, token=token, patches=folder)
    assert TOKEN not in f"{found.value} {found.value.hint}"


def test_a_lock_that_arrives_cannot_change_whose_signatures_count(pipe, folder, text, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    signing.sign(folder / "quarters-1-1.0.0.safetensors", tmp_path / "key")
    lock.pin(folder / "hotfix.lock", signers(tmp_path / "key.pub"))
    with (
        running(create(pipe, token=TOKEN, patches=folder, **CALL)) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        assert put(client, text("quarters-1")).status_code == 200
        answer = put(client, text("quarters-2"))
        assert answer.status_code == 422 and "is not signed" in answer.text
        assert names(client) == ["quarters-1"]
    assert lock.signers(folder / "hotfix.lock") == signers(tmp_path / "key.pub")


def test_a_change_past_the_server_is_found_and_not_covered_up(client, pipe, stack, text, folder):
    stack("quarters-3").apply(pipe)
    answer = put(client, text("quarters-1"))
    assert answer.status_code == 422 and "1 others do" in answer.json()["found"]
    assert names(client) == ["quarters-3"] and not (folder / lock.LOCK).exists()


def test_a_change_whose_lock_cannot_be_kept_is_undone(client, text, folder, monkeypatch):
    before = picture(client)
    replace = Path.replace

    def full(file, target):
        if target.name == lock.LOCK:
            raise OSError(28, "No space left on device")
        return replace(file, target)

    monkeypatch.setattr(Path, "replace", full)
    answer = put(client, text("quarters-1"))
    assert answer.status_code == 500 and answer.json()["found"].startswith("cannot write hotfix.lock")
    assert picture(client) == before and names(client) == []
    written, now = ledger.read(folder / lock.LOCK)
    assert [one.verb for one in written] == ["added"] and now == written[0].lock.before


def test_a_folder_whose_lock_cannot_be_read_is_not_changed(client, text, folder):
    (folder / lock.LOCK).mkdir()
    assert put(client, text("quarters-1")).status_code == 422 and names(client) == []


def test_the_metrics_say_what_is_on_and_what_was_asked(client, text):
    put(client, text("quarters-1"))
    put(client, text("quarters-1"))
    put(client, b"")
    _, name = picture(client)
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(client.get("/hotfix/metrics").text)
        for sample in family.samples
    }
    (patch,) = client.get("/hotfix/status").json()["patches"]
    assert found["hotfix_patch", "1.0.0", "quarters-1", patch["id"]] == 1
    assert [found["hotfix_changes_total", result] for result in ("ok", "same", "refused")] == [1, 1, 1]
    assert found["hotfix_change_seconds_count",] == 1
    assert found["hotfix_responses_total", name] == 1


def test_a_picture_can_be_drawn_again_under_the_stack_that_its_response_names(client, text, stack):
    put(client, text("quarters-1", "quarters-2"))
    png, name = picture(client, seed=7)
    again = pico.sd3()
    stack("quarters-1", "quarters-2").apply(again)
    assert again("a", num_inference_steps=1, **CALL).hotfix == name
    assert draw(Own(again), "a", 7, 2, **CALL) == png
    assert Image.open(io.BytesIO(png)).size == (16, 16)
