"""Does the projection hold for the step that is really taken? One short training for each optimiser, on real flags.

    python benchmarks/realised_step.py [-o benchmarks/realised_step.json] [--steps 60]

In all of them the forget gradient is projected off the mean retain gradient G. What differs is what becomes of it:
AdamW scales every parameter by itself, momentum adds what was right some steps ago, plain SGD does neither; in all,
the retain gradient of one batch is added, which may itself point against G. "Projected" projects the finished step
once more, which is what `hotfix build` does under `train.surgery`. The loop is the one that builds patches, with
another optimiser, or with `hold` taken out of it.
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from hotfix import building, console, project  # noqa: E402
from hotfix.pipeline import load_pipeline  # noqa: E402
from hotfix.recipe import Recipe  # noqa: E402

SGD_LR, MOMENTUM_LR = 15.0, 4.0  # how long their steps get follows the gradient: it is beside the numbers
SURGERY = "one-sided"


def sgd(params, lr, momentum=0.0, **_):
    return torch.optim.SGD(params, lr=lr, momentum=momentum)


# label -> optimiser, learning rate (None: the recipe's), whether the finished step is projected
VARIANTS = {
    "AdamW": (torch.optim.AdamW, None, False),
    "AdamW, projected": (torch.optim.AdamW, None, True),
    "SGD": (sgd, SGD_LR, False),
    "SGD, momentum 0.9": (partial(sgd, momentum=0.9), MOMENTUM_LR, False),
    "SGD, momentum 0.9, projected": (partial(sgd, momentum=0.9), MOMENTUM_LR, True),
}


def measured(recipe: Recipe, pipe, optimiser, projected: bool) -> dict[str, float]:
    """Build once, and say what its steps did; `cosine` is between a step as the optimiser made it and G."""
    facts, cosines, lengths = [], [], []
    train = building.train

    def trained(*args, **options):
        facts.append(train(*args, **options))
        return facts[0]

    def hold(step, onto):
        cosines.append(float(project.cosine(step, onto)))
        lengths.append(float(step.norm()))
        return project.hold(step, onto) if projected else step

    with (
        mock.patch("hotfix.building.train", trained),
        mock.patch("hotfix.train.hold", hold),
        mock.patch("torch.optim.AdamW", optimiser),
    ):
        building.build(recipe, pipe)
    return {
        "lr": recipe.train.lr,
        "steps": facts[0].steps,
        "steps in which the gradients conflict": round(facts[0].conflict_rate, 4),
        "mean cosine of the gradients": round(facts[0].cosine, 4),
        "steps the optimiser turned against G": sum(cosine > 1e-5 for cosine in cosines),
        "highest cosine of them with G": round(max(cosines), 4),
        "realised steps against G": facts[0].opposed_steps,
        "share": round(facts[0].opposed_steps / facts[0].steps, 4),
        "mean length of a step": round(sum(lengths) / len(lengths), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "patches/mauritania-2017/recipe.toml")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks/realised_step.json")
    args = parser.parse_args()
    console.quiet_libraries()
    recipe = Recipe.load(args.recipe)
    pipe = load_pipeline(recipe)
    rows = {}
    for label, (optimiser, lr, projected) in VARIANTS.items():
        changed = {"steps": args.steps, "lr": lr or recipe.train.lr, "surgery": SURGERY}
        train = recipe.train.model_copy(update=changed)
        rows[label] = measured(recipe.model_copy(update={"train": train}), pipe, optimiser, projected)
        print(label, rows[label])
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "recipe": recipe.name,
        "pipeline": recipe.base.pipeline,
        "surgery": SURGERY,
        "optimisers": rows,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    with console.door():
        main()
