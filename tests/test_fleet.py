"""On a real Ray cluster of two workers: what fails keeps to itself, and a worker that dies costs nothing but time."""

import json
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from rays import environment
from tiny import make_project

from hotfix import ledger
from hotfix.patch import Patch

if find_spec("ray") is None:
    pytest.skip("`make test` runs this file again with ray on the path", allow_module_level=True)

HOTFIX = Path(sys.executable).with_name("hotfix")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of who uses it, its address, its process, and the folder that it keeps its files in."""
    folder = tmp_path_factory.mktemp("ray")
    used = environment(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = Path("/tmp", f"hotfix-{port}")  # the names of sockets may not be long
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    ray += [f"--port={port}", f"--temp-dir={files}", "--include-dashboard=false"]
    with (folder / "out").open("w") as out:
        head = subprocess.Popen(ray, env=used, stdout=out, stderr=out, start_new_session=True)
    while "Ray runtime started" not in (folder / "out").read_text():
        assert head.poll() is None, (folder / "out").read_text()
        time.sleep(0.2)
    yield used, f"127.0.0.1:{port}", psutil.Process(head.pid), files
    children = psutil.Process(head.pid).children(recursive=True)
    head.terminate()
    head.wait(60)
    psutil.wait_procs(children, timeout=30)
    subprocess.run(["rm", "-rf", files], check=True)


def run(recipes, cluster, folder, *options):
    used, address, *_ = cluster
    return subprocess.Popen(
        [HOTFIX, "build", *recipes, "-n", "0", "--json", *options, "--ray", address],
        cwd=folder,
        env=used,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def inodes(folder):
    return {path.name: path.stat().st_ino for path in (folder / "dist").glob("*.safetensors")}


def test_fifty_builds_and_a_worker_that_is_killed(tmp_path, cluster):
    recipes = make_project(tmp_path, 52)
    (tmp_path / recipes[50]).with_name("surrogate.png").write_bytes(b"no picture")  # which a worker finds out
    (tmp_path / recipes[51]).write_text("no recipe")
    building, head, killed = run(recipes, cluster, tmp_path), cluster[2], None
    while killed is None:
        assert building.poll() is None, building.communicate()
        if len(there := inodes(tmp_path)) >= 10:
            building_now = [one for one in head.children(recursive=True) if one.name().startswith("ray::Worker.d")]
            killed = building_now[0] if building_now else None
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    out, words = building.communicate(timeout=300)
    assert building.returncode == 1, words
    assert "Traceback" not in words and "error: 2 of 52 recipes could not be built" in words
    rows = json.loads(out)
    assert [row["recipe"] for row in rows] == list(map(str, recipes))
    assert [row["state"] for row in rows[50:]] == ["failed"] * 2 and "can be read" in rows[50]["error"]
    # Nothing is lost ...
    patches = [Patch.load(tmp_path / row["file"]) for row in rows[:50]]
    assert [(patch.name, patch.id) for patch in patches] == [(f"quarters-{i}", rows[i]["id"]) for i in range(50)]
    # ... nothing is built twice: a second build would have put another file in the place of the first
    after = inodes(tmp_path)
    assert len(after) == 50 and there.items() <= after.items()
    told = ledger.read(tmp_path / "hotfix.lock")[0]
    assert {one.verb for one in told} == {"built"}
    assert sorted(one.patches[0].id for one in told) == sorted(patch.id for patch in patches)
    assert not list(tmp_path.glob("dist/*.state"))
    # Nothing of it stays with Ray: no request, no picture, no recipe
    secret = [b"TICKET-", (tmp_path / recipes[0]).with_name("forget.png").read_bytes()]
    kept = [path for path in cluster[3].rglob("*") if path.is_file() and not path.is_symlink()]
    assert kept and not [path for path in kept if any(word in path.read_bytes() for word in secret)]


def test_the_same_command_goes_on_where_a_killed_one_ended(tmp_path, cluster):
    recipes = make_project(tmp_path, 6)
    first = run(recipes, cluster, tmp_path, "--workers=1")
    while len(there := inodes(tmp_path)) < 2:
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.kill()
    first.communicate()
    second = run(recipes, cluster, tmp_path, "--workers=1")
    out, words = second.communicate(timeout=300)
    assert second.returncode == 0, words
    states = [row["state"] for row in json.loads(out)]
    assert states.count("found") >= 2 and set(states) <= {"found", "built"}
    assert there.items() <= inodes(tmp_path).items()
    told = ledger.read(tmp_path / "hotfix.lock")[0]
    assert sorted(one.patches[0].name for one in told) == [f"quarters-{i}" for i in range(6)]
