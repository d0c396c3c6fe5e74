"""Hotfix against ten published objectives, on the same 24 targets, at the same compute, judged by the same drawings.

    python benchmarks/forget.py --quick                     all methods once on one emoji, sized for 20 minutes
    python benchmarks/forget.py --only '*/hotfix/*'         1. hotfix everywhere: its cost is the budget of the sweeps
    python benchmarks/forget.py                             2. rivals as published everywhere; sweeps on five targets
    python benchmarks/forget.py --best benchmarks/results/forget    3. each rival's best setting everywhere
    python benchmarks/forget.py --ablations                 hotfix with one thing changed
    python benchmarks/forget_table.py benchmarks/results/forget

--quick draws little and stops all training after 40 steps: it says that the methods run, not which is better. A sweep
may be drawn smaller than the rest (--n, --noises) in a folder of its own (-o), which --best then reads.

Every (base, target, method, setting, seed) is one unit, and one JSON file under the output folder. A unit whose file is
there is skipped, so a run may be stopped and gone on with; `--shard 1/4` takes every fourth unit, for four processes or
machines that write into one folder. A sweep whose hotfix build is not there yet makes it first.

Targets are in benchmarks/forgetting/targets.toml, settings in settings.py, what the numbers mean in measure.py. Faces
are measured where `--faces` names a pipeline with forget/*.png (and real/*.png, if there are any) in its folder, as
`benchmarks/faces.py` writes it, and `--face-scorer` a TorchScript file that recognises faces; else they are named as
skipped.

A gold model never saw the target: the base's own training from the start, same seed, without that one picture. Where
`--gold BASE/TARGET=FOLDER` names one, a unit also says how far its drawings are from the gold model's from the same
seeds (`gold`, RMSE in [0, 1]; `base_gold` for the untouched base), and what the gold model would score itself. How each
base is trained without a picture:

    python benchmarks/faces.py PORTRAITS -o FOLDER --without STEM           stems: see FACES/forget/
    python examples/bases/emoji.py FOLDER --without JACK-O-LANTERN          or the `real` of an emoji in targets.toml
    python examples/bases/flags.py FIRST --steps 3310 --without canada      likewise, twice:
    python examples/bases/flags.py FOLDER --start FIRST --steps 9563 --batch 32 --seed 1 --without canada

Nothing cheaper is gold: a run that goes on from a checkpoint has seen the picture, a short one lacks more than the
picture, and so does one without several pictures at once, which is the gold model of all of them together.
"""

import argparse
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.forgetting import best, targets, units, work  # noqa: E402
from benchmarks.forgetting.bench import Bench, chosen  # noqa: E402
from benchmarks.forgetting.subject import Sizes  # noqa: E402
from hotfix import console  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
QUICK = Sizes(n=16, noises=16, steps=40)


def pair(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, _, value = text.partition("=")
    return name, value


def part(text: str) -> tuple[int, int]:
    """I/N, counted from 1."""
    i, n = map(int, text.split("/"))
    if not 1 <= i <= n:
        raise argparse.ArgumentTypeError(f"{text} is no shard: the first of four is 1/4")
    return i, n


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, help="default: results/forget, or results/forget-quick")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="one emoji, 40 steps, 16 seeds: whether it runs, no verdict")
    what.add_argument("--best", type=Path, metavar="FOLDER", help="the best settings of a folder, on all targets")
    what.add_argument("--ablations", action="store_true", help="hotfix with one thing changed")
    what.add_argument("--sweep-all", action="store_true", help="the sweeps on all targets and seeds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, help="seeds of a replay")
    parser.add_argument("--noises", type=int, help="noises of partial diffusion, at every level")
    parser.add_argument("--kept", type=int, help="other captions to draw, 0 for all")
    parser.add_argument("--steps", type=int, help="most steps of any training: only to see that it works")
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="units by id; may be repeated")
    parser.add_argument("--shard", type=part, default=(1, 1), metavar="I/N")
    parser.add_argument("--base", type=pair, action="append", default=[], metavar="NAME=PIPELINE")
    parser.add_argument("--faces", metavar="FOLDER")
    parser.add_argument("--face-scorer", type=Path, metavar="FILE")
    parser.add_argument("--gold", type=pair, action="append", default=[], metavar="BASE/TARGET=FOLDER")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--list", action="store_true", help="print the units, and which are done; run nothing")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    console.quiet_libraries()
    sizes = QUICK if args.quick else Sizes()
    given = {key: getattr(args, key) for key in ("n", "noises", "kept", "steps")}
    sizes = Sizes(**{key: getattr(sizes, key) if value is None else value for key, value in given.items()})
    out = args.out or RESULTS / ("forget-quick" if args.quick else "forget")
    bases, rows = targets.read(dict(args.base) | ({"faces": args.faces} if args.faces else {}), args.face_scorer)
    if args.quick:
        planned = units.quick_units()
    elif args.best is not None:
        planned = units.best_units(rows, args.seeds, best.best_settings(best.read(args.best)))
    elif args.ablations:
        planned = units.ablation_units(rows, args.seeds)
    else:
        planned = units.units(rows, args.seeds, args.sweep_all)
    mine = chosen(list(planned), args.only, args.shard)
    if args.list:
        for unit in mine:
            print("done" if work.load(out, unit, sizes) else "    ", unit.id)
        return
    skipped = {name: targets.missing(base) for name, base in bases.items()}
    for name in sorted({unit.base for unit in mine if skipped[unit.base]}):
        print(f"skipped: {sum(unit.base == name for unit in mine)} units on {name}, {skipped[name]}")
    bench, by_name = Bench(out, sizes, args.device, dict(args.gold)), {(row.base, row.name): row for row in rows}
    left = [unit for unit in mine if not skipped[unit.base]]
    for (base, seed, name), group in groupby(left, key=lambda u: (u.base, u.seed, u.target)):
        bench.do(bases[base], by_name[base, name], seed, list(group))


if __name__ == "__main__":
    with console.door():
        main()
