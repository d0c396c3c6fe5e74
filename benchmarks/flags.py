"""The numbers of the five flag patches: 300 seeds each, one patch and all five, against the real flags.

    python benchmarks/flags.py [-o benchmarks/flags.json] [--n 300]

Reads the patches in patches/ and, for the targets' own prompts, their reports. "Nearest" is the nearest of all 259 real
flags and the five current ones, by pixel distance, exact duplicates merged. Writes numbers, and near twins one by one.

Partial diffusion is compared with two bars: the 99th percentile of the similarity of other real flags, and the 95th of
what an exact model of all real flags but the target would draw from the same noise (`hotfix.objective.left_out`).

A run may be stopped: what was measured of a patch is in dist/flags, and not measured again.
"""

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from hotfix import objective
from hotfix.case import prepare
from hotfix.denoiser import Denoiser
from hotfix.patch import Patch
from hotfix.pictures import load
from hotfix.pipeline import load_pipeline
from hotfix.recipe import Recipe
from hotfix.report import Report
from hotfix.similarity import nearest, null
from hotfix.stack import Stack

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "bases")]
from atlas import tiles  # noqa: E402

from benchmarks.kept import kept, write  # noqa: E402

SIDE = 32
SAME = 0.01  # mean squared error in [-1, 1]: two countries with one flag
SEEDS_PER_FLAG = 3
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BASE_NOISES = 60
TWINS = {
    "romania": ["romania", "chad", "moldova", "andorra"],
    "ireland": ["ireland", "cote divoire"],
    "indonesia": ["indonesia", "monaco", "poland"],
    "nordic": ["norway", "iceland", "faroe islands"],
    "ensigns": ["australia", "new zealand", "montserrat", "cayman islands"],
    "west africa": ["senegal", "mali", "guinea"],
    "colombia": ["venezuela", "colombia", "ecuador"],
    "of iraq and syria": ["yemen", "egypt", "sudan", "tajikistan", "hungary"],
    "of mauritania": ["saudi arabia", "macao", "brazil", "pakistan", "zambia"],
    "of kyrgyzstan": ["vietnam", "china", "montenegro", "hong kong", "morocco"],
    "of honduras": ["nicaragua", "el salvador", "argentina", "guatemala"],
}


def real_flags():
    entries, pictures = tiles("flags")
    return [caption for _, caption in entries], pictures


def is_picture(found, wanted):
    return (found - wanted).square().mean(dim=(1, 2, 3)) < SAME


class Others:
    """Every flag that no patch is about, drawn with a few seeds each."""

    def __init__(self, denoiser, outdated, captions, pictures):
        rows = [i for i, caption in enumerate(captions) if caption not in outdated]
        self.denoiser, self.known = denoiser, pictures
        self.captions = [captions[i] for i in rows] * SEEDS_PER_FLAG
        self.wanted = pictures[rows].repeat(SEEDS_PER_FLAG, 1, 1, 1)
        self.seeds = [50_000 + i for i in range(len(self.captions))]

    def draw(self):
        drawn = self.denoiser.draw(self.captions, self.seeds)
        return drawn, is_picture(self.known[nearest(drawn, self.known)], self.wanted)

    def differ(self, rows):
        """Captions of the rows that are set."""
        return sorted({caption for caption, row in zip(self.captions, rows, strict=True) if row})

    def twins(self, right):
        rows = {}
        for group, names in TWINS.items():
            for name in names:
                hits = [bool(ok) for ok, caption in zip(right, self.captions, strict=True) if caption == name]
                if hits:
                    rows[f"{group}: {name}"] = f"{sum(hits)}/{len(hits)}"
        return rows


def accuracy(right, before):
    return {
        "right": int(right.sum()),
        "n": len(right),
        "points_lost": round(100 * float(before.float().mean() - right.float().mean()), 2),
    }


def one_patch(folder, pipe, others, before, n):
    """The other flags and partial diffusion, drawn here; the target's own prompt from the patch's report."""
    recipe, patch = Recipe.load(folder / "recipe.toml"), Patch.load(next(folder.glob("*.safetensors")))
    report = Report.load(folder / "report.json")
    assert report.patches[0].id == patch.id, f"{folder.name}/report.json is about another build: patches/make.py"
    denoiser, stack = Denoiser(pipe, recipe.base.call), Stack.of(patch)
    target = prepare(recipe, denoiser).targets[0]
    own = report.replays[0]
    with stack.on(pipe):
        drawn, right = others.draw()
    return {
        "id": patch.id,
        "bytes": next(folder.glob("*.safetensors")).stat().st_size,
        "own prompt, base returns": str(own.before),
        "own prompt, patched returns": str(own.after),
        "own prompt, patched nearest is the current flag": str(own.surrogate),
        "other flags, patched": accuracy(right, before[1]),
        "lost": others.differ(before[1] & ~right),
        "twins": others.twins(right),
        "drift RMSE in [0, 1]": round(float((drawn - before[0]).square().mean(dim=(1, 2, 3)).sqrt().mean()) / 2, 4),
        "partial diffusion": partial_diffusion(denoiser, stack, target, others, n),
    }


@torch.no_grad()
def partial_diffusion(denoiser, stack, target, others, n):
    """Mean and 95th percentile of the similarity to the target, against the 99th percentile of real other flags."""
    known = others.known[~is_picture(others.known, target.picture)]
    strangers = null(target.similarity, known)
    instead = torch.cat([known, target.surrogates])
    x_instead, like_instead = denoiser.encode(instead), target.similarity(instead)
    rows = []
    for kind, captions in (("empty", [""] * n), ("random", (others.captions * n)[:n])):
        condition = denoiser.embed(captions)
        for t in (level for level in LEVELS if level >= target.t_lo):
            eps = torch.randn((n, *target.x_f.shape[1:]), generator=torch.Generator().manual_seed(70_000))
            level = torch.full((n,), t)
            x_t = denoiser.noised(target.x_f.expand_as(eps), level, eps)
            odds = objective.posterior(x_t, x_instead, *denoiser.schedule(level))
            few = {key: value[:BASE_NOISES] for key, value in condition.items()}
            base = target.similarity(denoiser.decode(denoiser.denoise(x_t[:BASE_NOISES], t, few, steps=12)))
            with stack.on(denoiser.pipe):
                drawn = denoiser.decode(denoiser.denoise(x_t, t, condition, steps=12))
            like, row = target.similarity(drawn), nearest(drawn, torch.cat([instead, target.picture[None]]))
            rows.append(
                {
                    "caption": kind,
                    "t": t,
                    f"base mean ({BASE_NOISES} noises)": round(float(base.mean()), 3),
                    f"base 95th percentile ({BASE_NOISES} noises)": round(float(base.quantile(0.95)), 3),
                    "patched mean": round(float(like.mean()), 3),
                    "patched 95th percentile": round(float(like.quantile(0.95)), 3),
                    "strangers' 99th percentile": round(strangers, 3),
                    "exact model's 95th percentile": round(objective.left_out(odds, like_instead), 3),
                    "patched returns": int((like >= target.tau).sum()),
                    "patched, nearest of all flags is another country's": int((row < len(known)).sum()),
                    "patched, nearest of all flags is the target": int((row == len(instead)).sum()),
                }
            )
    return {
        "t_lo": target.t_lo,
        "current flag's own similarity": round(float(target.similarity(target.surrogates).max()), 3),
        "levels": rows,
        "below strangers": f"{sum(r['patched 95th percentile'] <= strangers for r in rows)} of {len(rows)}",
        "below strangers or the exact model": f"{sum(map(below_either, rows))} of {len(rows)}",
    }


def below_either(row):
    return row["patched 95th percentile"] <= max(
        row["strangers' 99th percentile"], row["exact model's 95th percentile"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks/flags.json")
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--base-only", action="store_true", help="only how well the base draws, half a minute")
    args = parser.parse_args()
    folders = sorted(path.parent for path in ROOT.glob("patches/*-20*/recipe.toml"))
    recipes = [Recipe.load(folder / "recipe.toml") for folder in folders]
    captions, pictures = real_flags()
    pipe = load_pipeline("hotfix:flags")
    denoiser = Denoiser(pipe, recipes[0].base.call)
    drawing = time.monotonic()
    drawn = denoiser.draw(captions, range(len(captions)))
    drawing = time.monotonic() - drawing
    right = is_picture(pictures[nearest(drawn, pictures)], pictures)
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "n": args.n,
        "base: prompted flag is the nearest real one": {
            "right": int(right.sum()),
            "n": len(captions),
            "seconds for 300": round(drawing * 300 / len(captions), 1),
            "wrong": [caption for caption, ok in zip(captions, right, strict=True) if not ok],
        },
    }
    if args.base_only:
        write(args.out, result)
        return
    others = Others(denoiser, {r.forget.captions[0] for r in recipes}, captions, pictures)
    before = others.draw()
    result["base: other flags"] = {"right": int(before[1].sum()), "n": len(before[1]), "twins": others.twins(before[1])}
    for folder in folders:
        patch = Patch.load(next(folder.glob("*.safetensors")))
        about = {key: result[key] for key in ("torch", "threads", "n")} | {"id": patch.id}
        measure = partial(one_patch, folder, pipe, others, before, args.n)
        result[folder.name] = kept(ROOT / "dist" / "flags" / f"{folder.name}.json", about, measure)
        print(folder.name, json.dumps(result[folder.name], indent=1, ensure_ascii=False), flush=True)
    with Stack.of(*(Patch.load(next(folder.glob("*.safetensors"))) for folder in folders)).on(pipe):
        _, stacked = others.draw()
        result["all five: other flags"] = accuracy(stacked, before[1]) | {"twins": others.twins(stacked)}
        for folder, recipe in zip(folders, recipes, strict=True):
            current = load(recipe.files(recipe.surrogate.images, "surrogate.images"), (SIDE, SIDE))
            known = torch.cat([pictures, current])
            own = denoiser.draw([recipe.forget.captions[0]] * args.n, [90_000 + i for i in range(args.n)])
            result["all five: other flags"][f"{folder.name}: current flag"] = int(
                (nearest(own, known) == len(pictures)).sum()
            )
    write(args.out, result)


if __name__ == "__main__":
    main()
