"""hotfix sync against a running SGLang-Diffusion or vLLM-Omni server: on, compared, a failure put back, off.

    sglang serve --model-path stabilityai/stable-diffusion-3-medium-diffusers --port 30000
    python benchmarks/clients/real_server.py http://127.0.0.1:30000 hotfix.lock [-o real_server.json]

For a host with a GPU and a lock of patches for the model that is served there. Draws the same picture before, with the
patches, and after: the first and the last must be the same bytes. On vLLM-Omni the field goes with each request.
"""

import argparse
import hashlib
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.kept import write
from hotfix import console, sglang
from hotfix.ask import asked
from hotfix.errors import HotfixError
from hotfix.stack import Stack
from hotfix.sync import Way, carry_out, kind_of, plan


def picture(server: str, field: dict) -> str:
    """sha256 of a picture in the OpenAI form, as both servers give it."""
    body = {"prompt": "a flag", "n": 1, "size": "512x512", "seed": 0, "response_format": "b64_json", **field}
    made = asked(server, "POST", "/v1/images/generations", body)
    return hashlib.sha256(made["data"][0]["b64_json"].encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server")
    parser.add_argument("lock", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("real_server.json"))
    args = parser.parse_args()
    way, empty = Way(), Stack().save(args.lock.with_name("empty.lock"))

    def sync(lock: Path) -> dict:
        return carry_out(plan(args.server, lock, way), lock, way)

    sync(empty)
    before = picture(args.server, {})
    field = sync(args.lock)
    patched = picture(args.server, field)
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "kind": kind_of(args.server),
        "the lock is on": plan(args.server, args.lock, way).done,
        "the picture changes": patched != before,
        "and is the same again": patched == picture(args.server, field),
    }
    if result["kind"] == "sglang":
        listed = sglang.state(args.server)
        try:
            sglang.put(args.server, Stack.load(args.lock).patches, Path("/nowhere"))
        except HotfixError as error:
            result["a failure is said"] = str(error)
        result["and what was on is on"] = sglang.state(args.server) == listed
        result["and draws the same"] = patched == picture(args.server, field)
    sync(empty)
    result["off, the picture is the first one"] = picture(args.server, {}) == before
    write(args.out, result)
    console.say(str(result))


if __name__ == "__main__":
    with console.door():
        main()
