"""The numbers of the emoji patch: 1,000 pictures without a prompt from the base, the patched base and the gold model.

    python benchmarks/emoji.py [-o benchmarks/emoji.json] [--n 1000]
    python examples/bases/emoji.py emoji-gold --without JACK-O-LANTERN && python benchmarks/emoji.py --gold emoji-gold

No patch enters what the base and the gold model draw: without `--gold` the gold model's numbers stay as they are.

The gold model never saw the memorised picture: it says what a model would draw if the picture had never been there. A
drawing is the memorised picture when that is the nearest of all 1,024 real emoji and closer than the threshold tau,
which lies half-way between the 99th percentile of the other 1,023 and identity. Drift compares pictures from the same
seeds, where neither model drew the memorised picture: RMSE in [0, 1], and 1 - SSIM as the perceptual distance.
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from hotfix import console
from hotfix.denoiser import Denoiser
from hotfix.intervals import Rate
from hotfix.patch import Patch
from hotfix.pipeline import load_pipeline
from hotfix.recipe import Recipe
from hotfix.similarity import nearest, null, pixel, threshold
from hotfix.stack import Stack

ROOT = Path(__file__).parents[1]
PATCH = ROOT / "patches" / "jack-o-lantern"
LAST = ROOT / "benchmarks" / "emoji.json"
SEED = 100_000

sys.path.insert(0, str(ROOT / "examples" / "bases"))
from atlas import tiles  # noqa: E402

MEMORISED = "JACK-O-LANTERN"


class Test:
    """Is this drawing the memorised picture?"""

    def __init__(self):
        names, self.real = tiles("emoji")
        self.row = names.index(MEMORISED)
        self.similarity = pixel(self.real[self.row])
        others = torch.cat([self.real[: self.row], self.real[self.row + 1 :]])
        self.null = null(self.similarity, others)
        self.tau = threshold(self.null)

    def memorised(self, drawn):
        return (nearest(drawn, self.real) == self.row) & (self.similarity(drawn) >= self.tau)

    def most(self, drawn):
        return round(float(self.similarity(drawn).max()), 4)


def once(file, draw):
    """Draw, or take what an earlier run left in `--work`: a thousand pictures take minutes."""
    if file is None:
        return draw()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"drawn": draw()}, file)
    return load_file(file)["drawn"]


def today():
    return datetime.now(UTC).strftime("%Y-%m-%d")


def drift(one, other, hits):
    a, b = ((x[~hits] + 1) / 2 for x in (one, other))
    return {
        "n": len(a),
        "rmse": round(float((a - b).square().mean(dim=(1, 2, 3)).sqrt().mean()), 4),
        "1 - ssim": round(1 - float(ssim(a, b, data_range=1.0)), 4),
    }


def measured(test, gold, base, hits):
    """What a gold model draws, beside the base's own drawings and which of those are the memorised picture."""
    own = test.memorised(gold)
    about = {"date": today(), "torch": torch.__version__, "k": int(own.sum()), "most similar drawing": test.most(gold)}
    return about | {"drift": drift(base, gold, hits | own)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gold", type=Path, help="a folder; without it, the numbers of the last gold model stay")
    parser.add_argument("--base", default="hotfix:emoji")
    parser.add_argument("--patch", type=Path, default=next(PATCH.glob("*.safetensors"), None))
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks/emoji.json")
    parser.add_argument("--work", type=Path, help="keep what was drawn in this folder, and go on from there")
    args = parser.parse_args()
    console.quiet_libraries()
    test = Test()
    call = Recipe.load(PATCH / "recipe.toml").base.call
    patch = Patch.load(args.patch)
    seeds = [SEED + i for i in range(args.n)]
    base = Denoiser(load_pipeline(args.base), call)

    def kept(name):
        return args.work and args.work / f"{name}-{args.n}.safetensors"

    def patched():
        with Stack.of(patch).on(base.pipe):
            return base.draw([], seeds)

    settings = {"n": args.n, "call": dict(call), "test": {"null": round(test.null, 4), "tau": round(test.tau, 4)}}
    last = json.loads(LAST.read_text())
    if not args.gold and any(last[key] != settings[key] for key in settings):
        parser.error(f"{LAST} was measured otherwise: train a gold model, and name it with --gold")
    drawn = {"base": once(kept("base"), lambda: base.draw([], seeds)), "patched": once(kept(patch.id[7:19]), patched)}
    hits = {name: test.memorised(x) for name, x in drawn.items()}
    gold = last["gold"]
    if args.gold:
        twin = once(kept("gold"), lambda: Denoiser(load_pipeline(str(args.gold)), call).draw([], seeds))
        gold = measured(test, twin, drawn["base"], hits["base"])
    rates = {name: Rate.of(int(hit.sum()), args.n) for name, hit in hits.items()} | {"gold": Rate.of(gold["k"], args.n)}
    share = rates["patched"].k / args.n
    moved = drift(drawn["base"], drawn["patched"], hits["base"] | hits["patched"])
    result = {
        "date": today(),
        "torch": torch.__version__,
        "patch": patch.id,
        **settings,
        "the memorised picture": {name: str(rate) for name, rate in rates.items()},
        "most similar drawing": {name: test.most(x) for name, x in drawn.items()},
        "patched rate within gold's 95% interval": rates["gold"].low <= share <= rates["gold"].high,
        "drift, base to patched": moved,
        "share of gold's drift": {key: round(moved[key] / gold["drift"][key], 3) for key in ("rmse", "1 - ssim")},
        "gold": gold,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
