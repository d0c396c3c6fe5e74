"""The examples for Ray Serve and BentoML: a real server in processes of its own changes its stack between pictures."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from conftest import interruptible
from rays import environment

from hotfix.patch import Patch
from hotfix.snapshot import Snapshot
from hotfix.stack import Stack

if find_spec("bentoml") is None or find_spec("ray") is None:
    pytest.skip("`make test` runs this file again with the servers on the path", allow_module_level=True)

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "serve"
TOKEN = "a-token-of-the-tests"
BENTOML = ["-m", "bentoml", "serve", "--host=127.0.0.1", f"--working-dir={EXAMPLES}", "on_bentoml:Flags"]
COMMANDS = {"ray": [str(EXAMPLES / "on_ray.py")], "bentoml": BENTOML}


@pytest.fixture(params=sorted(COMMANDS))
def server(request, tmp_path):
    """Its address, and its folder with two patches, one of them on."""
    served = tmp_path / "served"
    served.mkdir()
    for name in ("mauritania-2017", "syria-2025"):
        shutil.copy(next((ROOT / "patches" / name).glob("*.safetensors")), served)
    Stack.of(Patch.load(served / "mauritania-2017-1.0.0.safetensors")).save(served / "hotfix.lock")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    used = environment(tmp_path) | {"HOTFIX_TOKEN": TOKEN, "HOTFIX_PATCHES": str(served), "PORT": port}
    used |= {"RAY_TMPDIR": f"/tmp/hotfix-{port}", "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
    Path(used["RAY_TMPDIR"]).mkdir()
    command = [*COMMANDS[request.param], *([f"--port={port}"] if request.param == "bentoml" else [])]
    with (tmp_path / "out").open("w") as out:
        running = subprocess.Popen(
            [sys.executable, *command],
            env=used,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=interruptible,
        )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 200
    while True:
        try:
            if httpx.get(f"{address}/hotfix/status").status_code == 200:
                break
        except httpx.TransportError:
            pass
        assert running.poll() is None and time.monotonic() < deadline, (tmp_path / "out").read_text()
        time.sleep(0.5)
    yield address, served
    os.killpg(running.pid, signal.SIGINT)
    try:
        running.wait(60)
    finally:
        shutil.rmtree(used["RAY_TMPDIR"], ignore_errors=True)


def stack_id(*patches):
    return Snapshot(tuple(patch.id for patch in patches)).id


def test_a_server_names_its_stack_and_takes_a_new_one(server, tmp_path):
    address, served = server
    one, two = (Patch.load(served / f"{name}-1.0.0.safetensors") for name in ("mauritania-2017", "syria-2025"))

    def draw():
        asked = {"prompt": "mauritania", "seed": 0, "steps": 2}
        answer = httpx.post(f"{address}/generate", json=asked, timeout=60)
        assert answer.status_code == 200 and answer.content.startswith(b"\x89PNG")
        return answer.headers["x-hotfix-stack"], answer.content

    first, picture = draw()
    assert first == stack_id(one)
    text = Stack.of(one, two).save(served / "new.lock").read_text()
    put = {"Content-Type": "application/toml", "If-Match": httpx.get(f"{address}/hotfix/status").headers["etag"]}
    assert httpx.put(f"{address}/hotfix/stack", content=text, headers=put).status_code == 401
    assert draw() == (first, picture)
    put["Authorization"] = f"Bearer {TOKEN}"
    assert httpx.put(f"{address}/hotfix/stack", content=text, headers=put, timeout=60).status_code == 200
    second, other = draw()
    assert second == stack_id(one, two) and other != picture
    elsewhere = httpx.get(f"{address}/hotfix/status", headers={"Host": "example.org"})
    assert elsewhere.status_code == 403
