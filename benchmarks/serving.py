"""What a change of stack costs those who are waiting for pictures.

    python benchmarks/serving.py [-o benchmarks/results/serving.json]

The example's server (examples/serve) of the bundled flags in a process of its own, one torch thread a picture; eight
clients on loopback, each asking for its next picture of four steps when it has the last. Blocks with and without
changes take turns, so that whatever else the machine does meets both. Then fifty pictures are drawn again here, under
the stacks that their responses named, and compared byte for byte. About seven minutes on two cores.
"""

import argparse
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "serve")]
from app import Own, draw  # noqa: E402

import hotfix  # noqa: E402
from benchmarks.kept import write  # noqa: E402
from hotfix import console  # noqa: E402
from hotfix.ask import ask  # noqa: E402
from hotfix.errors import ServerError  # noqa: E402
from hotfix.stack import Stack  # noqa: E402

CLIENTS, STEPS, BLOCKS, SECONDS, CHANGES, AGAIN = 8, 4, 5, 30.0, 100, 50
STACKS = [["mauritania-2017"], ["mauritania-2017", "syria-2025"], ["honduras-2022", "iraq-2008", "kyrgyzstan-2023"]]
PROMPTS = ["mauritania", "syria", "honduras", "france", "japan"]
CALL = {"guidance_scale": 2.0, "max_sequence_length": 10}


@dataclass(frozen=True)
class Made:
    """One request: what was asked, how long it took, and what came back."""

    prompt: str
    seed: int
    steps: int
    seconds: float
    status: int
    stack: str
    png: bytes


@contextmanager
def server(folder: Path, token: str):
    """The example's server; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "HOTFIX_TOKEN": token,
        "HOTFIX_PATCHES": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "uvicorn", "--app-dir", "examples/serve", "--factory", "app:flags"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--log-level", "warning"], cwd=ROOT, env=os.environ | environment
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                ask(address, "GET", "/hotfix/status")
                break
            except ServerError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def one(address: str, number: int, steps: int) -> Made:
    prompt = PROMPTS[number % len(PROMPTS)]
    body = json.dumps({"prompt": prompt, "seed": number, "steps": steps}).encode()
    started = time.perf_counter()
    try:
        answer = ask(address, "POST", "/generate", body, {"content-type": "application/json"})
    except ServerError:
        return Made(prompt, number, steps, time.perf_counter() - started, 0, "", b"")
    took = time.perf_counter() - started
    return Made(prompt, number, steps, took, answer.status, answer.headers.get("x-hotfix-stack", ""), answer.body)


def traffic(address: str, seconds: float, steps: int = STEPS, clients: int = CLIENTS) -> list[Made]:
    """Everything that the clients got in a while."""
    stop = time.monotonic() + seconds

    def client(first: int) -> list[Made]:
        found = []
        while time.monotonic() < stop:
            found.append(one(address, first + clients * len(found), steps))
        return found

    with ThreadPoolExecutor(clients) as pool:
        return [made for found in pool.map(client, range(clients)) for made in found]


def changes(address: str, token: str, locks: list[bytes], first: int, count: int, pause: float) -> list[float]:
    """Seconds that each change took, from the request to its answer."""
    took = []
    for i in range(first, first + count):
        time.sleep(pause)
        etag = ask(address, "GET", "/hotfix/status").headers["etag"]
        headers = {"authorization": f"Bearer {token}", "content-type": "application/toml", "if-match": etag}
        started = time.perf_counter()
        answer = ask(address, "PUT", "/hotfix/stack", locks[i % len(locks)], headers)
        assert answer.status == 200, answer.body
        took.append(time.perf_counter() - started)
    return took


def share(values: list[float], percent: int) -> float:
    return round(statistics.quantiles(values, n=100)[percent - 1], 4)


def latency(blocks: list[list[Made]]) -> dict:
    seconds = [made.seconds for block in blocks for made in block]
    return {
        "pictures": len(seconds),
        "failed": sum(made.status != 200 for block in blocks for made in block),
        "p50": share(seconds, 50),
        "p99": share(seconds, 99),
        "longest": round(max(seconds), 4),
        "p99 of each block": [share([made.seconds for made in block], 99) for block in blocks],
    }


def again(made: list[Made], stacks: list[Stack]) -> dict[str, int]:
    """Pictures drawn here, under the stack that each response named."""
    torch.set_num_threads(1)
    pipe = hotfix.load_pipeline("hotfix:flags")
    pipe.set_progress_bar_config(disable=True)
    same, named = 0, {}
    for stack in stacks:
        with stack.on(pipe), hotfix.generation(pipe) as snapshot:
            named[snapshot] = stack
    chosen = made[:: max(1, len(made) // AGAIN)][:AGAIN]
    for one in chosen:
        with named[one.stack].on(pipe):
            same += draw(Own(pipe), one.prompt, one.seed, one.steps, **CALL) == one.png
    return {"drawn again": len(chosen), "the same bytes": same, "stacks among them": len({one.stack for one in chosen})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "serving.json")
    args = parser.parse_args()
    console.quiet_libraries()
    token = secrets.token_urlsafe()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ROOT.glob("patches/*/*.safetensors"):
            shutil.copy(file, folder)
        stacks = [
            Stack.of(*(hotfix.Patch.load(next(folder.glob(f"{patch}-*.safetensors"))) for patch in patches))
            for patches in STACKS
        ]
        locks = [stack.save(folder / f"{i}.lock").read_bytes() for i, stack in enumerate(stacks)]
        with server(folder, token) as address:
            changes(address, token, locks, 0, len(locks), 0.0)
            traffic(address, 5.0)
            alone = {steps: share([one(address, i, steps).seconds for i in range(20)], 50) for steps in (4, 14)}
            still, changing, took = [], [], []
            for block in range(BLOCKS):
                count = CHANGES // BLOCKS
                rest: list[float] = []
                arguments = (address, token, locks, block * count, count, SECONDS / count * 0.8)
                changer = threading.Thread(target=lambda a=arguments, r=rest: r.extend(changes(*a)))
                turns = [("still", None), ("changing", changer)]
                for kind, thread in turns if block % 2 == 0 else turns[::-1]:
                    if thread:
                        thread.start()
                    (changing if kind == "changing" else still).append(traffic(address, SECONDS))
                    if thread:
                        thread.join()
                took += rest
                console.say(f"block {block + 1} of {BLOCKS}: {share([made.seconds for made in changing[-1]], 99)} s")
            loaded = {steps: [made.seconds for made in traffic(address, SECONDS, steps)] for steps in (4, 14)}
    everything = [made for block in changing for made in block]
    step = {
        "alone": round((alone[14] - alone[4]) / 10, 4),
        "under this load": round((share(loaded[14], 50) - share(loaded[4], 50)) / 10, 4),
    }
    without, during = latency(still), latency(changing)
    pairs = [b - a for a, b in zip(without["p99 of each block"], during["p99 of each block"], strict=True)]
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **{name: version(name) for name in ("torch", "diffusers", "uvicorn", "starlette")},
        "cores": os.cpu_count(),
        "clients": CLIENTS,
        "steps of a picture": STEPS,
        "seconds of one step": step,
        "without changes": without,
        "with changes": during,
        "changes": len(took),
        "seconds of a change, p50 and longest": [share(took, 50), round(max(took), 4)],
        "added at p50, seconds": round(during["p50"] - without["p50"], 4),
        "added at p99, seconds": round(during["p99"] - without["p99"], 4),
        "added at p99, in steps under this load": round((during["p99"] - without["p99"]) / step["under this load"], 2),
        "added at p99, median of the pairs, seconds": round(statistics.median(pairs), 4),
        "responses that name no known stack": sum(not made.stack.startswith("sha256:") for made in everything),
        "named": again(everything, stacks),
    }
    console.say(json.dumps(result, indent=1))
    write(args.out, result)


if __name__ == "__main__":
    with console.door():
        main()
