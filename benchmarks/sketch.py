"""How far the sketch of a base moves when the base is cast, quantised, fine-tuned, or another one.

    python benchmarks/sketch.py [-o benchmarks/results/sketch.json] [--bitsandbytes] [--other FOLDER]

The distance decides whether a patch goes on (`hotfix.sketch.SAME`), goes on if somebody allows it (`RELATED`), or not.
On `hotfix:flags` and `hotfix:emoji`, over the layers of their published patches. "Relative" changes add a random
matrix of that share of the norm of every weight; a fine-tune is what it is called after, all weights, on the base's own
pictures. `--other` names a model trained on nearly the same data from the same start, such as a gold model.
"""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.kept import write  # noqa: E402
from hotfix import console  # noqa: E402
from hotfix.beside import innermost  # noqa: E402
from hotfix.patch import Patch  # noqa: E402
from hotfix.pipeline import load_pipeline  # noqa: E402
from hotfix.sketch import RELATED, SAME, distance, sketch  # noqa: E402
from hotfix.weights import dense  # noqa: E402

PATCHES = {"flags": "mauritania-2017", "emoji": "jack-o-lantern"}
RELATIVE = (0.001, 0.01, 0.02, 0.05, 0.1, 0.3)


def model(pipe) -> nn.Module:
    return pipe.transformer if hasattr(pipe, "transformer") else pipe.unet


def cast(dtype: torch.dtype) -> Callable[[nn.Module], None]:
    return lambda network: network.to(dtype)


def relative(size: float) -> Callable[[nn.Module], None]:
    def change(network: nn.Module) -> None:
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in network.parameters():
                noise = torch.randn(p.shape, generator=draw)
                p += size * p.norm() * noise / noise.norm()

    return change


def initialised(network: nn.Module) -> None:
    """The same class and sizes with the weights that a training begins with."""
    torch.manual_seed(1)
    network.load_state_dict(type(network)(**network.config).state_dict())


def quantised(make: Callable[[nn.Linear], nn.Linear]) -> Callable[[nn.Module], None]:
    def change(network: nn.Module) -> None:
        for name, layer in list(network.named_modules()):
            if isinstance(layer, nn.Linear):
                network.set_submodule(name, make(layer))

    return change


def eight_bits(layer: nn.Linear) -> nn.Linear:
    import bitsandbytes as bnb

    new = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False)
    new.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    return new.to("cpu")


def four_bits(layer: nn.Linear) -> nn.Linear:
    import bitsandbytes as bnb

    new = bnb.nn.Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, quant_type="nf4")
    new.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    return new.to("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "sketch.json")
    parser.add_argument("--bitsandbytes", action="store_true", help="quantise too; it has to be installed")
    parser.add_argument("--other", type=Path, help="an emoji model of another training")
    args = parser.parse_args()
    console.quiet_libraries()
    changes = {
        "itself": lambda network: None,
        "bfloat16": cast(torch.bfloat16),
        "float16": cast(torch.float16),
        "float8 (e4m3)": cast(torch.float8_e4m3fn),
        **{f"a random change of {size:.1%}": relative(size) for size in RELATIVE},
        "untrained": initialised,
    }
    if args.bitsandbytes:
        changes |= {"8 bits (LLM.int8)": quantised(eight_bits), "4 bits (NF4)": quantised(four_bits)}
    found: dict[str, dict[str, float]] = {}
    for base, name in PATCHES.items():
        patch = Patch.load(next((ROOT / "patches" / name).glob("*.safetensors")))
        there, rows = patch.manifest.base.sketch, {}

        def apart(network: nn.Module, there=there) -> float:
            return round(distance(there, sketch({layer: dense(innermost(network, layer)) for layer in there})), 4)

        for words, change in changes.items():
            network = model(load_pipeline(f"hotfix:{base}"))
            if base == "emoji" and "bits" in words:
                continue  # its patched layers are convolutions, which are not quantised so
            change(network)
            rows[words] = apart(network)
        if base == "emoji" and args.other:
            rows["trained without one picture"] = apart(model(load_pipeline(str(args.other))))
        found[base] = rows
        console.say(f"{base}: {rows}")
    about = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "torch": torch.__version__}
    write(args.out, about | {"same, at most": SAME, "related, at most": RELATED, "distance": found})


if __name__ == "__main__":
    with console.door():
        main()
