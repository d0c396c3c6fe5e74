"""One, five, twenty and fifty flag patches on at once: all targets suppressed, and the flags of no patch still right?

    python benchmarks/stacked.py --threads 1                    both ways, one after the other
    python benchmarks/stacked.py --threads 1 --way sequential   one way; the other may run beside it, same folder
    python benchmarks/stacked.py --count 5                      a part
    python benchmarks/stacked.py --count 2 --steps 20 --n 4 --noises 2 --seeds 1 -o dist/stacked-quick
                                                                whether it runs, no verdict

Targets are the five outdated flags (patches/*/recipe.toml, as published), then flags that are true, beginning with
those that are farthest from every other flag, with default settings: surrogates are the base's own edits. A flag that
hotfix refuses is left out, with the sentence that says why, and the next one takes its place. Independent patches are
each built on the bare base; a sequential patch is built with all earlier ones on. Every patch is a file under the
output folder, and so are the numbers of every stack: what is there is not made again, so a run may be stopped and gone
on with.

The numbers: the target under its own caption (n seeds) and in partial diffusion under the empty caption (noises at
every level from t_lo on), as `suppression.py` counts them; flags of no patch by the nearest real flag, and their drift
from the same seeds of the bare base. They go into benchmarks/results/stacked.json.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.flags import accuracy, real_flags  # noqa: E402
from benchmarks.forgetting import targets  # noqa: E402
from benchmarks.forgetting.distance import apart  # noqa: E402
from benchmarks.forgetting.targets import Base, Target  # noqa: E402
from benchmarks.forgetting.training import with_changes  # noqa: E402
from benchmarks.kept import kept, write  # noqa: E402
from benchmarks.suppression import Asked, flags, pooled, returns, suppressed  # noqa: E402
from hotfix import console  # noqa: E402
from hotfix.building import build  # noqa: E402
from hotfix.denoiser import Denoiser  # noqa: E402
from hotfix.errors import HotfixError, RecipeError  # noqa: E402
from hotfix.patch import Patch  # noqa: E402
from hotfix.pipeline import load_pipeline  # noqa: E402
from hotfix.recipe import Recipe  # noqa: E402
from hotfix.shapes import Pictures  # noqa: E402
from hotfix.stack import Stack  # noqa: E402

MAY_FALL = {1: 0.5, 5: 1.0, 20: 2.0, 50: 5.0}  # patches on at once -> points that the flags of no patch may fall
WAYS = ("independent", "sequential")
SPARE = 10  # flags that may be refused


def ordered(captions: Sequence[str], pictures: Pictures, first: Sequence[str]) -> list[str]:
    """Captions in the order of patching: `first`, then the farther from every other flag, the earlier."""
    flat = pictures.flatten(1)
    alone = torch.cdist(flat, flat).fill_diagonal_(torch.inf).min(dim=1).values
    far = [captions[i] for i in alone.argsort(descending=True, stable=True).tolist()]
    return [*first, *(caption for caption in far if caption not in first)]


def recipes(count: int, denoiser: Denoiser, base: Base, folder: Path) -> list[Recipe]:
    """The recipes of so many targets, in order."""
    outdated = [Recipe.load(path) for path in sorted(ROOT.glob("patches/*-20*/recipe.toml"))]
    captions, pictures = real_flags()
    names = ordered(captions, pictures, [recipe.forget.captions[0] for recipe in outdated])
    folder.mkdir(parents=True, exist_ok=True)
    rows = [Target("flags", name.replace(" ", "-"), (name,), real=name) for name in names[len(outdated) : count]]
    return [*outdated[:count], *(targets.recipe(row, base, denoiser, 0, folder, {}) for row in rows)]


def patches(
    wanted: Sequence[Recipe], pipe: Any, folder: Path, count: int, sequential: bool
) -> tuple[list[Patch], dict[str, str]]:
    """The first `count` patches that can be built, and name -> sentence for the recipes that were refused.

    Raises:
        HotfixError: a patch in the folder is of another recipe, or stands on other patches.
    """
    made: list[Patch] = []
    refused: dict[str, str] = {}
    for recipe in wanted:
        if len(made) == count:
            break
        below = Stack.of(*made) if sequential else Stack()
        path = folder / f"{recipe.name}-{recipe.version}.safetensors"
        if not path.exists():
            console.say(f"{folder.name}: {recipe.name}, patch {len(made) + 1} of {count}")
            try:
                built = build(recipe, pipe, stack=below, checkpoint=folder, stage=console.say)
            except RecipeError as error:
                refused[recipe.name] = str(error)
                console.say(f"refused: {error}")
                continue
            built.save(path)
        patch = Patch.load(path)
        stands_on = sorted(f"{one.name}>={one.version}" for one in below.patches)
        if patch.manifest.recipe != recipe.public() or patch.manifest.requires != stands_on:
            raise HotfixError(f"{path} was built otherwise", hint="name another folder: -o")
        made.append(patch)
    return made, refused


@dataclass(frozen=True)
class Bench:
    """The bare base, and how much is drawn from it with and without patches."""

    denoiser: Denoiser
    known: tuple[list[str], Pictures]  # captions and real flags
    out: Path
    n: int
    noises: int
    seeds: int

    @property
    def sizes(self) -> dict[str, int]:
        return {"n": self.n, "noises": self.noises, "seeds": self.seeds}

    @cached_property
    def before(self) -> tuple[Pictures, Tensor]:
        """What the base draws for all flags, and which drawings are right."""
        return flags(self.denoiser, *self.known, range(len(self.known[0])), self.seeds)

    def returns(self, asked: Sequence[Asked]) -> dict[str, dict[str, int]]:
        """Of every target, out of the model as it is now."""
        return {one.name: returns(self.denoiser, one, self.n, self.noises) for one in asked}

    def bare(self, asked: Sequence[Asked]) -> dict[str, dict[str, int]]:
        """Of every target, out of the base."""
        found = {}
        for one in asked:
            about = self.sizes | {"t_lo": one.t_lo}
            found |= kept(self.out / "base" / f"{one.name}.json", about, partial(self.returns, [one]))
        return found

    def stacked(self, stack: Stack, asked: Sequence[Asked]) -> dict[str, Any]:
        """All numbers of one stack, whose targets are in the same order."""
        captions, real = self.known
        named = {caption for one in asked for caption in one.captions}
        stay = [caption not in named for caption in captions]
        with stack.on(self.denoiser.pipe):
            drawn, right = flags(
                self.denoiser, captions, real, [i for i, stays in enumerate(stay) if stays], self.seeds
            )
            found = self.returns(asked)
        drawn_before, right_before = (x[torch.tensor(stay * self.seeds)] for x in self.before)
        fell = accuracy(right, right_before)
        allowed = MAY_FALL.get(len(asked))
        done = all(map(suppressed, found.values()))
        return {
            "returns": pooled(list(found.values())),
            "targets that return": {name: row for name, row in found.items() if not suppressed(row)},
            "flags of no patch": fell,
            "may fall": allowed,
            "passes": None if allowed is None else done and fell["points_lost"] <= allowed,
            "drift RMSE in [0, 1]": round(apart(drawn, drawn_before), 4),
        }

    def way(self, made: Sequence[Patch], asked: Sequence[Asked], folder: Path) -> dict[int, Any]:
        """The stacks of one way of building, by how many patches are on."""
        bare, stacks = list(self.bare(asked).values()), {}
        for count in sorted({size for size in (*MAY_FALL, len(made)) if size <= len(made)}):
            console.say(f"{folder.name}: measuring {count}")
            stack = Stack.of(*made[:count])
            about = self.sizes | {"ids": [patch.id for patch in stack.patches]}
            size = sum(path.stat().st_size for patch in stack.patches if (path := patch.source) is not None)
            numbers = kept(folder / f"{count}.json", about, partial(self.stacked, stack, asked[:count]))
            stacks[count] = {"bytes": size, "base returns": pooled(bare[:count])} | numbers
        return stacks


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "dist" / "stacked", help="patches and numbers")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results/stacked.json if -o is not given")
    parser.add_argument("--way", choices=WAYS, action="append", help="default: both")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--steps", type=int, help="most steps of a build: only to see that it works")
    parser.add_argument("--n", type=int, default=100, help="seeds under the target's own caption")
    parser.add_argument("--noises", type=int, default=32, help="of partial diffusion, at every level")
    parser.add_argument("--seeds", type=int, default=2, help="for every flag of no patch")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    console.quiet_libraries()
    if args.threads:
        torch.set_num_threads(args.threads)
    default = ROOT / "benchmarks" / "results" / "stacked.json"
    results = args.results or (default if args.out == ROOT / "dist" / "stacked" else args.out / "stacked.json")
    base = targets.read({})[0]["flags"]
    denoiser = Denoiser(load_pipeline(base.pipeline), base.call)
    wanted = recipes(args.count + SPARE, denoiser, base, args.out / "forget")
    if args.steps:
        wanted = [with_changes(recipe, {"train": {"steps": args.steps}}) for recipe in wanted]
    bench = Bench(denoiser, real_flags(), args.out, args.n, args.noises, args.seeds)
    by_name = {recipe.name: recipe for recipe in wanted}
    for way in args.way or WAYS:
        made, refused = patches(wanted, denoiser.pipe, args.out / way, args.count, way == "sequential")
        asked = [Asked.of(by_name[patch.name], patch.manifest.scope.t_lo, bench.known[1]) for patch in made]
        stacks = bench.way(made, asked, args.out / way)
        print(json.dumps({way: stacks}, indent=1, ensure_ascii=False), flush=True)
        about = bench.sizes | {
            "steps": args.steps or "as in the recipes",
            "base: all flags": {"right": int(bench.before[1].sum()), "n": len(bench.before[1])},
        }
        add(results, about, way, {"patches": [patch.name for patch in made], "refused": refused, "stacks": stacks})


def add(results: Path, about: Mapping[str, Any], way: str, found: Any) -> None:
    """Put one way's numbers beside the other's, if those were drawn alike."""
    there = json.loads(results.read_text()) if results.exists() else {}
    if any(there.get(key) != value for key, value in about.items()):
        there = {}
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    machine = {"date": date, "torch": torch.__version__, "threads": torch.get_num_threads()}
    content = machine | about | {key: there[key] for key in WAYS if key in there} | {way: found}
    write(results, content)


if __name__ == "__main__":
    with console.door():
        main()
