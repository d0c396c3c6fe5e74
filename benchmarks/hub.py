"""What publishing costs: a patch of 10 MB pushed, pulled and verified, against a Hub on loopback.

python benchmarks/hub.py [-o benchmarks/results/hub.json] [--rounds 7]

The Hub is tests/minihub.py, in a process of its own; the client is huggingface_hub, without Xet, with an empty cache
for every pull. "calls" are the three functions in one process, imports not counted; "commands" are three processes.
Their CPU seconds are there too: those do not depend on what else the machine does. A real network is not in it.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from benchmarks.kept import write  # noqa: E402
from hotfix import console  # noqa: E402

HOTFIX = Path(sys.executable).with_name("hotfix")
BYTES, BAR = 10_000_000, 3.0  # seconds


def patches(count: int, folder: Path) -> list[Path]:
    """Files of random factors, each of at least 10 MB."""
    import pico
    from patching import random_patch

    pipe = pico.sd15()
    small = random_patch(pipe, "small", 0, rank=1).size
    rank = -(-BYTES // small)
    return [random_patch(pipe, f"patch-{i}", i, rank=rank).save(folder) for i in range(count)]


def seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return round(time.perf_counter() - started, 3)


def calls(file: Path, repo: str, out: Path) -> dict[str, float]:
    import hotfix
    from hotfix.publish import unpack

    patch = hotfix.Patch.load(file)
    return {
        "push": seconds(lambda: hotfix.push(patch, repo)),
        "pull": seconds(lambda: unpack(hotfix.pull(repo), out)),
        "verify": seconds(lambda: hotfix.Patch.load(out / file.name)),
    }


def commands(file: Path, repo: str, out: Path) -> dict[str, float]:
    def command(*words: object) -> None:
        subprocess.run([HOTFIX, *map(str, words)], check=True, capture_output=True)

    before = os.times()
    found = {
        "push": seconds(lambda: command("push", file, repo)),
        "pull": seconds(lambda: command("pull", repo, "-o", out)),
        "verify": seconds(lambda: command("verify", out / file.name)),
    }
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return found | {"CPU": round(spent, 3)}


@contextmanager
def serving(folder: Path) -> Iterator[Path]:
    """A Hub in a process of its own, named in the environment; yields the client's home."""
    serve = [sys.executable, ROOT / "tests" / "minihub.py", folder / "hub"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            os.environ |= {"HF_ENDPOINT": server.stdout.readline().strip(), "HF_TOKEN": "hf_test", "TZ": "UTC"}
            os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            os.environ |= {"HF_HOME": str(folder / "home")}
            yield folder / "home"
        finally:
            server.terminate()


def measured(rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {way.__name__: [] for way in (calls, commands)}
    differ = 0
    with tempfile.TemporaryDirectory() as name, serving(Path(name)) as home:
        files = patches(rounds + 1, Path(name) / "dist")
        for i, file in enumerate(files):
            for way in (calls, commands):
                shutil.rmtree(home, ignore_errors=True)
                out = Path(name) / way.__name__ / str(i)
                took = way(file, f"acme/{way.__name__}-{i}", out)
                differ += (out / file.name).read_bytes() != file.read_bytes()
                if i:  # the first of each imports
                    found[way.__name__].append(took)
                console.say(f"{way.__name__}: {took}")
        size = files[0].stat().st_size
    medians = {
        way: {part: statistics.median(took[part] for took in rows) for part in rows[0]}
        | {"in all": statistics.median(round(took["push"] + took["pull"] + took["verify"], 3) for took in rows)}
        for way, rows in found.items()
    }
    return {"bytes of the file": size, "pulled files that differ": differ, "median seconds": medians, "rounds": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "hub.json")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    about = {name: version(name) for name in ("huggingface_hub", "diffusers", "torch")}
    load = {"cores": os.cpu_count(), "load of the machine before": round(os.getloadavg()[0], 1)}
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    write(args.out, {"date": date} | about | load | {"bar, seconds": BAR} | measured(args.rounds))


if __name__ == "__main__":
    with console.door():
        main()
