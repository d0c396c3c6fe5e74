"""Coverage-guided fuzzing of the reader of patches: anything but a HotfixError is a find.

    pip install atheris
    python benchmarks/fuzz.py [--seconds 3600] [-o benchmarks/results/fuzz.json]

libFuzzer mutates, guided by the branches of hotfix that are taken: whole files, the header alone before a good body,
and the manifest alone in an otherwise good header, so that a wrong length or digest does not hide what lies behind it.
Each input has a second and 1 GiB. What is accepted must be written and read again as the same patch.
"""

import argparse
import json
import re
import struct
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["hotfix"]):
    from hotfix import container
    from hotfix.errors import HotfixError
    from hotfix.manifest import identity
    from hotfix.patch import ID_KEY, MANIFEST_KEY, A, B, Patch, _check, digest, header

SEED = ROOT / "patches" / "jack-o-lantern"
WHOLE, HEADER, MANIFEST = range(3)
ROUND = 600  # seconds of one process: the fuzzer's own memory grows


def small() -> bytes:
    """A good file of one layer, made of a published patch."""
    patch = Patch.load(next(SEED.glob("*.safetensors")))
    layer = min(patch.layers, key=lambda name: sum(patch.entries[name + s].data.nbytes for s in (A, B)))
    entries = {layer + suffix: patch.entries[layer + suffix] for suffix in (A, B)}
    manifest = patch.manifest.model_copy(update={"digest": digest(entries)})
    return container.dump(header(manifest, manifest.text(), entries), entries)


GOOD = small()
(LENGTH,) = struct.unpack("<Q", GOOD[:8])
MOST = 2 * len(GOOD)
HEAD, BODY = json.loads(GOOD[8 : 8 + LENGTH]), GOOD[8 + LENGTH :]


def file(data: bytes) -> bytes:
    """The patch file that an input stands for; its first byte says how."""
    kind, rest = data[0] % 3, data[1:]
    if kind == WHOLE:
        return rest
    if kind == HEADER:
        return struct.pack("<Q", len(rest)) + rest + BODY
    text = rest.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()
    metadata = HEAD["__metadata__"] | {MANIFEST_KEY: text, ID_KEY: identity(text)}
    head = json.dumps(HEAD | {"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(head)) + head + BODY


def one(data: bytes) -> None:
    """Read one input."""
    if not data:
        return
    try:
        metadata, entries = container.parse(file(data), "input")
        _check(metadata, entries, "input")
    except HotfixError:
        return
    manifest = metadata[MANIFEST_KEY]
    patch = Patch(manifest, entries)
    again = container.parse(container.dump(header(patch.manifest, manifest, entries), entries), "again")
    _check(*again, "again")
    assert {key: (e.dtype, e.shape, bytes(e.data)) for key, e in again[1].items()} == {
        key: (e.dtype, e.shape, bytes(e.data)) for key, e in entries.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "fuzz.json")
    parser.add_argument("--seconds", type=int, default=3600)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus"
        corpus.mkdir()
        head, text = GOOD[8 : 8 + LENGTH], HEAD["__metadata__"][MANIFEST_KEY].encode()
        for kind, seed in enumerate((GOOD, head, text)):
            (corpus / str(kind)).write_bytes(bytes([kind]) + seed)
        rounds = []
        for left in range(args.seconds, 0, -ROUND):
            limits = [f"-max_total_time={min(left, ROUND)}", "-timeout=1", "-rss_limit_mb=1024", f"-max_len={MOST}"]
            told = [sys.executable, __file__, "--fuzz", f"-artifact_prefix={name}/", *limits, "-print_final_stats=1"]
            done = subprocess.run([*told, str(corpus)], capture_output=True, text=True)
            stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
            covered = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
            if not covered or not stats:
                sys.exit(done.stderr[-2000:])
            rounds.append({key: int(value) for key, value in stats.items()} | {"cov": [int(c) for c, _ in covered]})
        finds = [path.read_bytes().hex() for path in Path(name).iterdir() if path.is_file()]
        inputs = len(list(corpus.iterdir()))
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": sys.version.split()[0],
        "atheris": version("atheris"),
        "seconds": args.seconds,
        "inputs read": sum(one["number_of_executed_units"] for one in rounds),
        "slowest input, seconds": max(one["slowest_unit_time_sec"] for one in rounds),
        "peak memory, MB": max(one["peak_rss_mb"] for one in rounds),
        "branches covered at first": rounds[0]["cov"][0],
        "branches covered": rounds[-1]["cov"][-1],
        "inputs kept": inputs,
        "finds": finds,
    }
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(bool(finds))


if __name__ == "__main__":
    if "--fuzz" in sys.argv:
        sys.argv.remove("--fuzz")
        atheris.Setup(sys.argv, one)
        atheris.Fuzz()
    main()
