"""How far a patch for some pictures of a subject reaches to pictures of it that it never saw: 1, 3 and 5 views given.

    python benchmarks/views.py [-o benchmarks/views.json] [--subject clock]

Two subjects on `hotfix:emoji`. A clock: 24 real emoji, one for every half-hour, all of which the base has learned. The
memorised jack-o-lantern: views made here, zoomed, turned and lit otherwise (not shifted: from a view that is shifted by
more than a pixel the base goes back to the picture as it learned it, so there is no such view to suppress). Ten views
are held out, always the same, and a patch is built from each number of given views: once with nothing but the pictures
("plain"), once with train.augment, and train.adjacency where there are several ("identity").

A held-out view is noised to every level from its own t_lo on and denoised without a caption, and comes back where more
than one noise in twenty brings it back, judged by a threshold of its own. Suppressed are those that come back from the
base and not from the patched one; a view that the base does not bring back is counted on neither side.

A run may be stopped: what was measured of a patch is in dist/views, and not measured again.
"""

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path

import torch

from hotfix import console, subject
from hotfix.augment import augmented
from hotfix.building import build
from hotfix.case import prepare
from hotfix.denoiser import Denoiser
from hotfix.intervals import Rate
from hotfix.pictures import to_images
from hotfix.pipeline import load_pipeline
from hotfix.recipe import Recipe
from hotfix.stack import Stack

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "bases")]
from atlas import tiles  # noqa: E402

from benchmarks.kept import kept, write  # noqa: E402

GIVEN = (1, 3, 5)
HELD_OUT = 10
NOISES = 10  # for every held-out view and level
OTHERS = 100  # seeds from pure noise: how the rest drifts
SEED = 60_000
ONE_IN_TWENTY = 0.05
CALL = {"num_inference_steps": 20}
KINDS = ["zoom", "turn", "light"]
PLAIN = {"augment": [], "adjacency": "none"}
IDENTITY = {"augment": KINDS, "adjacency": "auto"}


def views(name: str) -> torch.Tensor:
    """All views of a subject, the given ones first: (N, 3, 32, 32)."""
    names, pictures = tiles("emoji")
    if name == "clock":
        rows = [i for i, name in enumerate(names) if "CLOCK FACE" in name]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
        return pictures[[rows[i] for i in order]]
    picture = pictures[names.index("JACK-O-LANTERN")][None]
    others = [augmented(picture, KINDS, SEED + i) for i in range(max(GIVEN) - 1 + HELD_OUT)]
    return torch.cat([picture, *others])


def recipe(name: str, given: int, options: dict, folder: Path) -> Recipe:
    shown = to_images(views(name))
    for kind, some in (("forget", shown[:given]), ("held_out", shown[-HELD_OUT:])):
        (folder / kind).mkdir()
        for i, image in enumerate(some):
            image.save(folder / kind / f"{i:02d}.png")
    return Recipe.parse(
        {
            "name": name,
            "base": {"pipeline": "hotfix:emoji", "call": CALL},
            "forget": {"images": ["forget/*.png"], "held_out": ["held_out/*.png"]},
            "train": {"rank": 4, **options},
        },
        folder=folder,
    )


def measured(wanted: Recipe) -> dict:
    """Build one patch and measure it on the views that were held out, and on other seeds."""
    pipe = load_pipeline(wanted)
    started, taken = time.monotonic(), 0

    def progress(step, steps, facts):
        nonlocal taken
        taken = step

    patch = build(wanted, pipe, progress=progress, stage=console.say)
    seconds, stack = time.monotonic() - started, Stack.of(patch)
    denoiser = Denoiser(pipe, CALL)
    case = prepare(wanted, denoiser)
    held = subject.held_out(wanted, denoiser, case)
    found = subject.measure(denoiser, stack, case, held, [], SEED, NOISES)
    each = [found.returns("empty", number) for number in range(1, HELD_OUT + 1)]
    before = denoiser.draw([], range(SEED, SEED + OTHERS))
    with stack.on(pipe):
        after = denoiser.draw([], range(SEED, SEED + OTHERS))
    others = ~torch.stack([one.returned(before) for one in case.targets]).any(dim=0)
    drift = (after - before)[others].square().mean(dim=(1, 2, 3)).sqrt() / 2
    return {
        "held-out views suppressed": suppressed(each),
        "noises that brought one back": {
            "base": str(found.returns("empty")[0]),
            "patched": str(found.returns("empty")[1]),
        },
        "each view: base, patched, of": [[before.k, after.k, before.n] for before, after in each],
        "levels from": [round(one.t_lo, 2) for one in held],
        "drift of other seeds": round(float(drift.mean()), 4),
        "steps": taken,
        "strength": round(patch.manifest.strength, 3),
        "seconds to build": round(seconds),
    }


def comes_back(rate: Rate) -> bool:
    return rate.k > ONE_IN_TWENTY * rate.n


def suppressed(views: list[tuple[Rate, Rate]]) -> str:
    there = [after for before, after in views if comes_back(before)]
    return f"{sum(not comes_back(after) for after in there)} of {len(there)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks/views.json")
    parser.add_argument("--subject", choices=("clock", "jack-o-lantern"), help="one of the two; default: both")
    args = parser.parse_args()
    console.quiet_libraries()
    machine, found = {"torch": torch.__version__, "threads": torch.get_num_threads()}, {}
    for name in [args.subject] if args.subject else ("clock", "jack-o-lantern"):
        for given, (words, options) in product(GIVEN, {"plain": PLAIN, "identity": IDENTITY}.items()):
            key = f"{name}, {given} given, {words}"
            with tempfile.TemporaryDirectory() as folder:
                wanted = recipe(name, given, options, Path(folder))
                about = machine | {"recipe": wanted.public(), "noises": NOISES, "others": OTHERS}
                path = ROOT / "dist" / "views" / f"{name}-{given}-{words}.json"
                found[key] = kept(path, about, partial(measured, wanted))
            print(key, json.dumps(found[key]), flush=True)
    write(args.out, {"date": datetime.now(UTC).strftime("%Y-%m-%d")} | machine | found)


if __name__ == "__main__":
    with console.door():
        main()
