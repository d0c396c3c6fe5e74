"""The same patch on the same hosts in five ways: beside, folded, as stock diffusers loads a LoRA, and as it might be.

    python benchmarks/hosts.py [-o benchmarks/results/hosts.json]

Every host action of tests/hosts.py is done to a pipeline that the patch is on, and counted as survived where the
picture has the patch's effect, which is that of a base born with ΔW in its weights, or where the host is told that it
would not. A `DDPMPipeline` has no LoRA loader, so stock diffusers has no way. "Hook" is a plain forward hook on each
layer, without the guard; "wrapper" is a module of its own in the place of each layer.
"""

import argparse
import logging
import sys
import tempfile
import warnings
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import hosts  # noqa: E402
import pico  # noqa: E402
from patching import denoiser, random_patch  # noqa: E402

from benchmarks.kept import write  # noqa: E402
from hotfix import console  # noqa: E402
from hotfix.beside import innermost  # noqa: E402
from hotfix.errors import HotfixError  # noqa: E402
from hotfix.patch import A, B  # noqa: E402
from hotfix.stack import Stack  # noqa: E402


def effect(layer, a, b, x):
    if isinstance(layer, nn.Linear):
        return F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))
    return F.conv2d(F.conv2d(x, a.to(x.dtype), None, layer.stride, layer.padding), b.to(x.dtype))


class Wrapper(nn.Module):
    def __init__(self, layer, a, b):
        super().__init__()
        self.layer, self.a, self.b = layer, a, b

    def forward(self, x, *args, **kwargs):
        return self.layer(x, *args, **kwargs) + effect(self.layer, self.a, self.b, x)


def parts(pipe, stack):
    """Name, layer and factors of everything that a stack of one patch acts on."""
    for patch in stack.patches:
        for key in patch.layers:
            name = key.split(".", 1)[1]
            yield name, innermost(denoiser(pipe), name), patch.tensors[key + A], patch.tensors[key + B]


def hook(pipe, file, stack):
    for _, layer, a, b in parts(pipe, stack):
        layer.register_forward_hook(lambda layer, args, out, a=a, b=b: out + effect(layer, a, b, args[0]))


def wrap(pipe, file, stack):
    for name, layer, a, b in list(parts(pipe, stack)):
        denoiser(pipe).set_submodule(name, Wrapper(layer, a, b))


WAYS = {
    "beside": lambda pipe, file, stack: stack.apply(pipe),
    "folded": lambda pipe, file, stack: stack.apply(pipe, fold=True),
    "hook": hook,
    "wrapper": wrap,
    "stock": lambda pipe, file, stack: pipe.load_lora_weights(file, adapter_name="hotfix"),
}


def fate(way, family, action, folder, patch, wanted, bare) -> str:
    """What becomes of the patch."""
    pipe = pico.HOSTS[family]()
    WAYS[way](pipe, patch.save(folder / "patch"), Stack.of(patch))
    try:
        found, *_ = hosts.after(action, pipe, family, folder)
    except HotfixError:
        return "refused"
    except Exception as error:  # whatever the host's own libraries raise
        return f"error: {type(error).__name__}"
    finally:
        torch._dynamo.reset()
    if hosts.alike(found, wanted, bare, action):
        return "kept"
    gone = hosts.alike(found, bare, wanted, action)
    return "lost" if gone else "changed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "hosts.json")
    parser.add_argument("--family", action="append", choices=sorted(pico.HOSTS), help="default: all")
    args = parser.parse_args()
    console.quiet_libraries()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows: dict[str, dict[str, str]] = {}
    for family in args.family or pico.HOSTS:
        actions = [action for one, action in hosts.MATRIX + hosts.SLOW if one == family] + hosts.REFUSED
        if not hasattr(denoiser(pico.HOSTS[family]()), "fuse_qkv_projections"):
            actions.remove(hosts.fuse_projections)
        patch = random_patch(pico.HOSTS[family](), "one", 1, size=0.5)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if family != "ddpm":
                hosts.styles(family, folder)
            for action in actions:
                key = f"{family}, {action.__name__}"
                wanted, *_ = hosts.after(action, hosts.born_with(patch, family), family, folder)
                bare, *_ = hosts.after(action, pico.HOSTS[family](), family, folder)
                rows[key] = {
                    way: fate(way, family, action, folder, patch, wanted, bare)
                    for way in WAYS
                    if family != "ddpm" or way != "stock"
                }
                console.say(f"{key}: {rows[key]}")
    survived = {
        way: Counter("survived" if row[way] in ("kept", "refused") else row[way] for row in rows.values() if way in row)
        for way in WAYS
    }
    about = {"date": datetime.now(UTC).strftime("%Y-%m-%d")} | {
        name: version(name) for name in ("torch", "diffusers", "peft")
    }
    write(args.out, about | {"count": {way: dict(count) for way, count in survived.items()}, "actions": rows})
    print({way: dict(count) for way, count in survived.items()})


if __name__ == "__main__":
    with console.door():
        main()
