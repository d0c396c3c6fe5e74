"""Every attack on the published patches: does it bring the target back from the base, from the patch, for a stranger?

    python benchmarks/attacks.py [-o benchmarks/results/attacks] [--n 20] [--only mauritania-2017 ...]

A weak patch, the same one at a twentieth of its strength, stands beside the real one: an attack has to win there too.
Each attack is a file in the folder, so that a run may be stopped and gone on with.
"""

import argparse
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.kept import kept  # noqa: E402
from hotfix import console  # noqa: E402
from hotfix.attacks import ATTACKS, hits, ready, tried  # noqa: E402
from hotfix.case import Case, prepare  # noqa: E402
from hotfix.denoiser import Denoiser  # noqa: E402
from hotfix.patch import B, Patch, digest, from_torch  # noqa: E402
from hotfix.pipeline import load_pipeline  # noqa: E402
from hotfix.recipe import Recipe  # noqa: E402
from hotfix.scoring import hardware  # noqa: E402
from hotfix.stack import Stack  # noqa: E402

PATCHES = {path.parent.name: path for path in sorted(ROOT.glob("patches/*/*.safetensors"))}
SEED = 50_000
WEAK = 0.05


def weakened(patch: Patch, strength: float = WEAK) -> Patch:
    """The same patch with a fraction of its effect."""
    scaled = {key: strength * t if key.endswith(B) else t for key, t in patch.tensors.items()}
    entries = from_torch(scaled)
    manifest = patch.manifest.model_copy(update={"name": f"{patch.name}-weak", "digest": digest(entries)})
    return Patch(manifest.text(), entries)


def measured(denoiser: Denoiser, case: Case, patch: Patch, attack: str, n: int) -> dict[str, Any]:
    """An attack on a patch and on the weak one, with what it took."""
    start = time.monotonic()
    row = tried(denoiser, Stack.of(patch), case, attack, n, SEED).model_dump(mode="json")
    draw = ready(denoiser, case, attack, SEED)
    with Stack.of(weakened(patch)).on(denoiser.pipe):
        row["weak"] = hits(denoiser, case, draw, case.targets, n, SEED).model_dump(mode="json")
    ran = {"seconds": round(time.monotonic() - start), "on": hardware(denoiser.device)}
    return row | ran | {"date": datetime.now(UTC).date().isoformat()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "attacks")
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=list(PATCHES), choices=list(PATCHES))
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=list(ATTACKS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    console.quiet_libraries()
    for name in args.only:
        recipe, patch = Recipe.load(PATCHES[name].parent / "recipe.toml"), Patch.load(PATCHES[name])
        denoiser = Denoiser(load_pipeline(recipe), recipe.base.call)
        case = prepare(recipe, denoiser)
        for attack in [attack for attack in args.attacks if ATTACKS[attack].fits(denoiser)]:
            about = {"patch": name, "id": patch.id, "attack": attack, "budget": ATTACKS[attack].budget, "n": args.n}
            measure = partial(measured, denoiser, case, patch, attack, args.n)
            row = kept(args.out / f"{name}.{attack}.json", about, measure)
            rates = ", ".join(
                f"{key} {row[key]['k']}/{row[key]['n']}" for key in ("before", "after", "weak", "stranger")
            )
            console.say(f"{name} {attack}: {rates}; {row['seconds']} s")


if __name__ == "__main__":
    main()
