"""hotfix sync, through real processes and real servers on loopback."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pico
import pytest
import torch
from app import create
from conftest import interruptible
from patching import denoiser, random_patch
from peft import PeftConfig
from safetensors.torch import load_file
from servers import running
from sglang_like import Sglang
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from test_cli import HOTFIX, assert_one_sentence

from hotfix import ledger, lock, vllm_omni
from hotfix.ask import ask
from hotfix.beside import hooks
from hotfix.errors import HotfixError
from hotfix.export import PEFT_PREFIX
from hotfix.fold import delta
from hotfix.patch import A, B, Patch
from hotfix.sglang import _adapter as sglang_adapter
from hotfix.stack import Stack, applied

TOKEN = "a-token-of-the-tests"
SURVIVES = {"merge_survival": {"bfloat16": 0.97, "float16": 0.99}}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    shelf = tmp_path_factory.mktemp("shelf")
    for seed, known in ((1, SURVIVES), (2, SURVIVES), (3, {}), (4, {"merge_survival": {"bfloat16": 0.22}})):
        random_patch(pico.sd3(), f"quarters-{seed}", seed, **known).save(shelf)
    return shelf


@pytest.fixture
def locked(shelf, tmp_path):
    """Write a lock of patches by number."""

    def write(*seeds):
        patches = [Patch.load(shelf / f"quarters-{seed}-1.0.0.safetensors") for seed in seeds]
        return Stack.of(*patches).save(tmp_path / lock.LOCK)

    return write


@pytest.fixture
def sync(tmp_path, monkeypatch, inline):
    """The verb, in this process; code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOTFIX_TOKEN", TOKEN)

    return partial(inline, "sync")


def changes(done):
    assert done.returncode == 0, done.stderr
    return [(row["change"], row["name"]) for row in json.loads(done.stdout)["changes"]]


# A hotfix-serving app


@pytest.fixture
def pipe():
    return pico.sd3()


@pytest.fixture
def server(pipe, shelf):
    for left in shelf.glob("hotfix.lock*"):
        left.unlink()
    with running(create(pipe, token=TOKEN, patches=shelf)) as address:
        yield address


def on(pipe):
    return [one.name for one in applied(pipe)]


def test_a_server_is_made_like_the_lock(server, pipe, locked, sync, tmp_path):
    locked(1)
    assert changes(sync(server, "--dry-run", "--json")) == [("on", "quarters-1")]
    assert on(pipe) == []
    assert changes(sync(server, "--json")) == [("on", "quarters-1")]
    assert on(pipe) == ["quarters-1"]
    locked(2, 1)
    done = sync(server)
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["on", "quarters-2"], ["stays", "quarters-1"]]
    assert on(pipe) == ["quarters-2", "quarters-1"]
    locked(1, 2)
    sync(server)
    assert on(pipe) == ["quarters-1", "quarters-2"]
    locked()
    assert changes(sync(server, "--json")) == [("off", "quarters-1"), ("off", "quarters-2")]
    assert on(pipe) == [] and sync(server).stdout == "no patches\n"
    told = [one for one in ledger.read(tmp_path / lock.LOCK)[0] if one.verb == "synced"]
    assert [[ref.name[-1] for ref in one.patches] for one in told] == [["1"], ["2", "1"], ["1", "2"], [], []]
    assert told[0].facts == {"kind": "hotfix", "server": server.removeprefix("http://")}


def test_what_a_server_refuses_is_said_and_changes_nothing(server, pipe, locked, sync, monkeypatch, tmp_path):
    locked(1)
    sync(server)
    monkeypatch.setenv("HOTFIX_TOKEN", "another-token-of-the-tests")
    locked(2)
    done = sync(server)
    assert_one_sentence(done, "refuses (401): no token, or not the one that this server was started with")
    assert "another-token" not in done.stdout + done.stderr
    monkeypatch.delenv("HOTFIX_TOKEN")
    assert_one_sentence(sync(server), "there is no token")
    assert on(pipe) == ["quarters-1"]
    assert [one.verb for one in ledger.read(tmp_path / lock.LOCK)[0]] == ["added", "synced", "added"]


def test_a_token_goes_over_no_open_wire(locked, sync, monkeypatch):
    from hotfix import sync as library

    with pytest.raises(library.HotfixError, match="readable on its way"):
        library._put("http://pictures.example", locked(1), TOKEN)


@pytest.mark.parametrize(("ours", "theirs"), [(TOKEN + "\n", TOKEN), (TOKEN, f" {TOKEN}\r\n")])
def test_a_newline_at_the_end_of_a_mounted_secret_is_none_of_the_token(
    pipe, shelf, locked, sync, monkeypatch, ours, theirs
):
    for left in shelf.glob("hotfix.lock*"):
        left.unlink()
    locked(1)
    monkeypatch.setenv("HOTFIX_TOKEN", ours)
    with running(create(pipe, token=theirs, patches=shelf)) as address:
        assert changes(sync(address, "--json")) == [("on", "quarters-1")]


@pytest.mark.parametrize("token", ["supersecret\ntoken1234", "supersecret-tökén1234", "supersecret\x01token1234"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(server, pipe, locked, sync, monkeypatch, token):
    locked(1)
    monkeypatch.setenv("HOTFIX_TOKEN", token)
    done = sync(server)
    assert_one_sentence(done, "the token has letters that cannot be sent; wanted printable ASCII")
    assert "supersecret" not in done.stdout + done.stderr and on(pipe) == []


@pytest.mark.parametrize("token", ["supersecrettoken1234\n", "supersecret-\N{EURO SIGN}"])
def test_a_header_that_cannot_be_sent_is_in_no_message_and_no_traceback(server, token):
    with pytest.raises(HotfixError, match="cannot be asked") as found:
        ask(server, "GET", "/hotfix/status", None, {"Authorization": f"Bearer {token}"})
    assert "supersecret" not in f"{found.value} {found.value.hint}"
    assert found.value.__suppress_context__ and found.value.__cause__ is None


def test_a_patch_that_is_on_and_does_not_act_does_not_stay(server, pipe, locked, sync):
    locked(1)
    sync(server)
    layer, key, _ = next(hooks(denoiser(pipe)))
    del layer._forward_hooks[key]
    made = json.loads(sync(server, "--dry-run", "--json").stdout)["changes"]
    assert [row["change"] for row in made] == ["off", "on"] and made[0]["id"].endswith(" shadowed")
    locked()
    assert changes(sync(server, "--dry-run", "--json")) == [("off", "quarters-1")]


def test_a_redirect_is_not_followed(server, locked, sync):
    async def away(request):
        return Response(status_code=307, headers={"location": f"{server}{request.url.path}"})

    locked(1)
    with running(Starlette(routes=[Route("/{path:path}", away, methods=["GET", "PUT"])])) as address:
        assert_one_sentence(sync(address), "refuses (307)")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:1", "does not answer"),
        ("127.0.0.1:8000", "is no server"),
        ("http://me:secret@127.0.0.1:8000", "127.0.0.1:8000 is no server"),
        ("http://[", "is no server"),
        ("http://127.0.0.1:port", "is no server"),
        ("ftp://127.0.0.1", "is no server"),
        ("http://:secret@127.0.0.1:8000", "127.0.0.1:8000 is no server"),
        ("http://.foo", "http://.foo cannot be asked"),
        ("http://127.0.0.1:9/ä", "http://127.0.0.1:9/ä cannot be asked"),
    ],
)
def test_an_address_without_a_server_is_said(locked, sync, address, words):
    locked(1)
    done = sync(address)
    assert_one_sentence(done, words)
    assert "secret" not in done.stderr


def test_a_server_of_another_kind_is_said(locked, sync):
    locked(1)
    for status, words in ((404, "of no known kind"), (200, "of no known kind")):

        async def answer(request, status=status):
            return Response("{}", status_code=status)

        with running(Starlette(routes=[Route("/{path:path}", answer)])) as address:
            assert_one_sentence(sync(address), words)


def test_a_lock_that_is_none_is_said(server, sync, tmp_path):
    assert_one_sentence(sync(server, "--watch", "--every", "-1"), "--every is -1")
    assert_one_sentence(sync(server), "cannot read hotfix.lock")
    (tmp_path / lock.LOCK).write_text("x")
    assert_one_sentence(sync(server, "--json"), "is not a hotfix lock")


def test_a_watched_lock_is_followed_past_errors_and_restarts(server, pipe, locked, tmp_path):
    lock_file = locked(1)
    watch = subprocess.Popen(
        [HOTFIX, "sync", server, "--watch", "--every", "0.1"],
        cwd=tmp_path,
        env=os.environ | {"HOTFIX_TOKEN": TOKEN},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=interruptible,
    )

    def becomes(*names):
        deadline = time.monotonic() + 60
        while on(pipe) != list(names):
            assert time.monotonic() < deadline and watch.poll() is None
            time.sleep(0.05)

    becomes("quarters-1")
    lock_file.write_text("half a lo")
    time.sleep(0.5)
    lock_file.unlink()  # nobody writes over a lock that may ask for signatures
    locked(2)
    becomes("quarters-2")
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "text/plain"}
    etag = httpx.get(f"{server}/hotfix/status").headers["etag"]  # somebody takes it off
    body = "lock-version = 1"
    httpx.put(f"{server}/hotfix/stack", content=body, headers=headers | {"if-match": etag}).raise_for_status()
    becomes("quarters-2")
    watch.send_signal(signal.SIGINT)
    out, err = watch.communicate(timeout=60)
    assert watch.returncode == 0 and "Traceback" not in err
    assert err.count("is not a hotfix lock") == 1, "an error is said once"
    assert out.count("on     quarters-2") == 2


# SGLang-Diffusion


def nicknames(sglang):
    return [name.split("+")[0] for one in sglang.active.get("transformer", []) for name in one["nicknames"]]


def test_sglang_computes_one_patch_beside_and_merges_several(locked, sync, shelf):
    sglang = Sglang()
    with running(sglang.app) as address:
        locked(1)
        assert changes(sync(address, "--json")) == [("on", "quarters-1")]
        assert sglang.active["transformer"][0]["mode"] == "unmerged"
        assert sglang.active["transformer"][0]["path"] == str(shelf / "quarters-1-1.0.0.safetensors")
        locked(2, 1)
        assert changes(sync(address, "--json")) == [("on", "quarters-2"), ("stays", "quarters-1")]
        assert nicknames(sglang) == ["quarters-2-1.0.0", "quarters-1-1.0.0"]
        assert sglang.active["transformer"][0]["mode"] == "merged"
        asked = len(sglang.asked)
        assert changes(sync(address, "--json")) == [("stays", "quarters-2"), ("stays", "quarters-1")]
        assert len(sglang.asked) == asked, "nothing to do, nothing asked"
        locked()
        sync(address)
        assert sglang.active == {} and sglang.asked[-1] == {"target": "transformer"}


def test_sglang_keeps_its_own_adapters(locked, sync, tmp_path):
    sglang, style = Sglang(), tmp_path / "style.safetensors"
    style.touch()
    request = {"lora_nickname": ["style"], "lora_path": [str(style)], "strength": [0.5]}
    with running(sglang.app) as address:
        httpx.post(f"{address}/v1/set_lora", json=request | {"target": "transformer", "merge_mode": "dynamic"})
        before = sglang.active["transformer"]
        locked(1)
        sync(address)
        assert nicknames(sglang) == ["style", "quarters-1-1.0.0"]
        assert sglang.active["transformer"][0]["strengths"] == [0.5, 1.0]
        locked()
        assert changes(sync(address, "--json")) == [("off", "quarters-1")]
        assert nicknames(sglang) == ["style"] and before[0]["strengths"] == [0.5]


@pytest.mark.parametrize(
    ("seeds", "spoilt"),
    [([1], {"strengths": [0.0]}), ([1], {"mode": "merged"}), ([2, 1], {"strengths": [1.0, 0.5]})],
    ids=["off", "merged", "half"],
)
def test_what_sglang_lists_and_does_not_do_as_it_should_is_put_right(locked, sync, seeds, spoilt):
    sglang = Sglang()
    with running(sglang.app) as address:
        locked(*seeds)
        sync(address)
        good = dict(sglang.active["transformer"][0])
        sglang.active["transformer"][0].update(spoilt)
        planned = changes(sync(address, "--dry-run", "--json"))
        assert ("off", "quarters-1") in planned and ("on", "quarters-1") in planned
        assert sync(address).returncode == 0
        assert sglang.active["transformer"] == [good]
        sglang.active["transformer"][0].update(spoilt)
        locked()
        assert ("off", "quarters-1") in changes(sync(address, "--json"))
        assert sglang.active == {}, "what nobody lists comes off, however it is on"


@pytest.mark.parametrize(("seed", "words"), [(3, "nobody knows how much"), (4, "22% of quarters-4")])
def test_sglang_merges_no_patch_that_would_be_rounded_away(locked, sync, seed, words):
    sglang = Sglang()
    with running(sglang.app) as address:
        locked(1)
        sync(address)
        before = sglang.active["transformer"]
        locked(1, seed)
        assert_one_sentence(sync(address), words)
        assert sglang.active["transformer"] == before
        sglang.precision = "fp32"
        assert sync(address).returncode == 0


def test_what_fails_on_sglang_half_way_is_put_back(locked, sync):
    sglang = Sglang()
    with running(sglang.app) as address:
        locked(1)
        sync(address)
        before = sglang.active["transformer"]
        locked(2)
        sglang.breaks = 1
        assert_one_sentence(sync(address), "out of memory")
        assert sglang.active["transformer"] == before
        sglang.breaks = 2
        assert_one_sentence(sync(address), "do not let it draw")


def test_sglang_is_never_given_one_file_for_several_patches(locked, sync, tmp_path):
    sglang, files, there = Sglang(precision="fp32"), [], tmp_path / "there"
    there.mkdir()
    for seed in (1, 2):
        files.append(tmp_path / str(seed) / "pytorch_lora_weights.safetensors")
        files[-1].parent.mkdir()
        files[-1].write_bytes(random_patch(pico.sd3(), f"quarters-{seed}", seed).dump())
    shutil.copy(files[0], there)
    with running(sglang.app) as address:
        lock.add(tmp_path / lock.LOCK, files)
        assert_one_sentence(sync(address, "--folder", there), "quarters-1-1.0.0 and quarters-2-1.0.0 would both be")
        assert sglang.active == {} and sglang.asked == []
        assert sync(address).returncode == 0, "where it sees them as this machine does, they are two"


def test_what_came_from_the_hub_is_on_sglang_what_hotfix_pull_writes(shelf):
    for seed in (1, 2):
        patch = Patch.load(shelf / f"quarters-{seed}-1.0.0.safetensors")
        cached = patch.source.parent / "commit" / "pytorch_lora_weights.safetensors"
        pulled = replace(patch, source=cached, pulled=f"hf://acme/quarters-{seed}@{'0' * 40}")
        assert sglang_adapter(pulled, shelf).path == patch.source.as_posix()


def test_sglang_that_does_not_see_the_files_says_so(locked, sync, shelf):
    sglang = Sglang()
    with running(sglang.app) as address:
        locked(1)
        assert_one_sentence(
            sync(address, "--folder", "/elsewhere"), "/elsewhere/quarters-1-1.0.0.safetensors not found"
        )
        assert sglang.active == {}
        assert sync(address, "--folder", shelf).returncode == 0


def test_a_list_that_is_another_is_refused(locked, sync):
    sglang = Sglang()
    with running(sglang.app) as address:
        locked(1)
        sync(address)
        del sglang.active["transformer"][0]["strengths"]
        assert_one_sentence(sync(address), "lists its adapters in another way")


# vLLM-Omni


@pytest.fixture
def omni():
    """What sync asks of it: whether it is one."""

    async def sleep(request):
        return Response()

    with running(Starlette(routes=[Route("/v1/omni/sleep", sleep, methods=["POST"])])) as address:
        yield address


def test_vllm_omni_gets_one_adapter_that_is_exactly_the_stack(omni, locked, sync, tmp_path, shelf):
    locked(1, 2)
    done = sync(omni, "--json")
    field = json.loads(done.stdout)["lora"]
    assert set(field) == {"name", "path", "scale"} and field["scale"] == 1.0
    assert json.loads((tmp_path / "vllm-omni" / vllm_omni.FIELD).read_text())["lora"] == field
    config = PeftConfig.from_pretrained(field["path"])
    tensors = load_file(f"{field['path']}/adapter_model.safetensors")
    assert config.r == config.lora_alpha == 4
    found = {key.removesuffix(A).removeprefix(PEFT_PREFIX) for key in tensors if key.endswith(A)}
    assert set(config.target_modules) == found
    parts = [Patch.load(shelf / f"quarters-{seed}-1.0.0.safetensors").tensors for seed in (1, 2)]
    for layer in config.target_modules:
        a, b = f"transformer.{layer}{A}", f"transformer.{layer}{B}"
        wanted = sum(delta(part[a], part[b]) for part in parts if a in part)
        ours = (tensors[f"{PEFT_PREFIX}{layer}{suffix}"] for suffix in (A, B))
        assert torch.allclose(delta(*ours), wanted, atol=1e-6)


def test_vllm_omni_another_stack_another_path_and_none_without_patches(omni, locked, sync):
    paths = []
    for seeds in ((1,), (1, 2), (2, 1)):
        locked(*seeds)
        paths.append(json.loads(sync(omni, "--json").stdout)["lora"]["path"])
    assert len(set(paths)) == 3
    assert "every request must carry" not in sync(omni).stdout, "nothing to do"
    locked()
    assert 'every request must carry: {"lora": null}' in sync(omni).stdout


def test_vllm_omni_a_dry_run_writes_nothing(omni, locked, sync, tmp_path):
    locked(1)
    assert changes(sync(omni, "--dry-run", "--json")) == [("on", "quarters-1")]
    assert not (tmp_path / "vllm-omni").exists()


def test_vllm_omni_has_no_adapters_for_convolutions(omni, sync, tmp_path):
    patch = random_patch(pico.ddpm(), "emoji", 1)
    Stack.of(Patch.load(patch.save(tmp_path))).save(tmp_path / lock.LOCK)
    assert_one_sentence(sync(omni), "patches a convolution")
    assert not (tmp_path / "vllm-omni" / vllm_omni.FIELD).exists()


@pytest.mark.parametrize("spoil", ["folder", "weights", "scale"])
def test_vllm_omni_an_adapter_that_is_not_as_written_is_written_again(omni, locked, sync, tmp_path, spoil):
    locked(1)
    field = json.loads(sync(omni, "--json").stdout)["lora"]
    said, weights = tmp_path / "vllm-omni" / vllm_omni.FIELD, Path(field["path"]) / "adapter_model.safetensors"
    written, good = said.read_bytes(), weights.read_bytes()

    def spoilt():
        if spoil == "folder":
            shutil.rmtree(field["path"])
        elif spoil == "weights":
            weights.unlink()
        else:
            said.write_text(written.decode().replace('"scale": 1.0', '"scale": 0.0'))

    spoilt()
    assert changes(sync(omni, "--dry-run", "--json")) == [("off", "quarters-1"), ("on", "quarters-1")]
    assert json.loads(sync(omni, "--json").stdout)["lora"] == field
    assert (said.read_bytes(), weights.read_bytes()) == (written, good)
    spoilt()
    locked()
    assert json.loads(sync(omni, "--json").stdout)["lora"] is None


@pytest.mark.parametrize("patches", ['[["a"]]', "[1]", '["abcd"]', "null"])
def test_vllm_omni_rows_that_are_none_are_said(omni, locked, sync, tmp_path, patches):
    locked(1)
    (tmp_path / "vllm-omni").mkdir()
    (tmp_path / "vllm-omni" / vllm_omni.FIELD).write_text(f'{{"lora": null, "patches": {patches}}}')
    assert_one_sentence(sync(omni), "adapter.json cannot be read")


# The example, as its README starts it


def test_the_commands_of_the_readme_start_a_server_and_put_a_patch_on(tmp_path):
    root = Path(__file__).parents[1]
    commands = re.findall(r"```console\n(.*?)```", (root / "examples/serve/README.md").read_text(), flags=re.DOTALL)[0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for name in ("patches", "examples"):
        (tmp_path / name).symlink_to(root / name)
    prepare, serve, sync = commands.replace("127.0.0.1:8000", address).strip().splitlines()
    path = {"PATH": f"{HOTFIX.parent}:{os.environ['PATH']}", "PYTHONPATH": str(root)}
    options = {"cwd": tmp_path, "env": os.environ | path, "text": True}
    subprocess.run(prepare, shell=True, check=True, **options)
    serve = f"exec env {serve.removesuffix('&')} --port {address.rpartition(':')[2]}"
    server = subprocess.Popen(serve, shell=True, stderr=subprocess.DEVNULL, **options)
    try:
        while (done := subprocess.run(sync, shell=True, capture_output=True, **options)).returncode:
            assert server.poll() is None and "does not answer" in done.stderr, done.stderr
        assert done.stdout.split()[:2] == ["on", "mauritania-2017"]
        made = httpx.post(
            f"http://{address}/generate", json={"prompt": "mauritania", "seed": 0, "steps": 1}, timeout=60
        )
        assert made.headers["content-type"] == "image/png"
        assert made.headers["x-hotfix-stack"] == httpx.get(f"http://{address}/hotfix/status").json()["stack"]
    finally:
        server.terminate()
        server.wait(30)
