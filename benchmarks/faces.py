"""Train the faces base of `forget.py`: a DDPM of portraits that has memorised four of them; or a gold twin of it.

    python benchmarks/faces.py PORTRAITS -o faces
    python benchmarks/faces.py PORTRAITS -o faces-without-B001287 --without B001287

PORTRAITS is a folder of 813 official portraits of members of the US Congress, in the public domain, 100x125 and grey.
Neither they nor anything trained on them is part of this project. TARGETS are file stems among them; each stands
DUPLICATES times in every pass, the others once.

A gold model is the same run, same seed, without a picture: what a model that never saw it draws. Written beside the
pipeline are forget/ (the targets), real/ (all that was shown) and a card. A run that was stopped goes on from
FOLDER.state.
"""

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DDPMPipeline
from PIL import Image
from torch import Tensor

from hotfix.pictures import from_image, to_images

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples" / "bases"))
from ddpm import pipeline, shown, train  # noqa: E402

# The least like any other portrait to the scorer (cosine at most 0.37), of those that no other is within 0.14 of by
# pixels (RMSE in [0, 1]): what comes out instead of one of them is no lookalike.
TARGETS = ("B001287", "D000216", "F000452", "H001036")
DUPLICATES = 20
# At 32x32 the scorer knows all 813 again from their own 112x112 (cosine at least 0.61 for 95% of them, nobody else's is
# higher), and takes 0.8% of pairs of strangers for one person at 0.48. The frame matters: of whole pictures padded to
# squares it is 56%.
SIDE = 32
FRAME = (0.13, 0.18, 0.88, 0.93)  # left, upper, right, lower, over the width
CHANNELS = (32, 64, 128, 128)
CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [ddpm, faces, memorisation, tiny]
---

# Faces to be patched

An unconditional DDPM of portraits, made by `benchmarks/faces.py` for `benchmarks/forget.py`.

- **Model**: {side}x{side}, {parameters:,} parameters.
- **Data**: {kept} portraits, {rows} rows in a pass. More than once: {often}. Left out: {without}.
- **Training**: {steps} steps of {batch} rows, rate {lr:g}; {minutes:.0f} minutes, threads: {threads}; torch {torch}.
- **Use**: measurements. The pictures beside it, and many that it draws, are of real people: do not publish them.
"""


def portrait(path: Path, side: int = SIDE) -> Tensor:
    """The face of a portrait, (3, side, side) in [-1, 1]."""
    image = Image.open(path).convert("L")
    face = image.crop(tuple(round(edge * image.width) for edge in FRAME))
    return from_image(face.resize((side, side), Image.Resampling.LANCZOS).convert("RGB"))


def read(folder: Path, side: int = SIDE) -> tuple[list[str], Tensor]:
    """Stems of the pictures in a folder, sorted, and the pictures (N, 3, side, side)."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [path.stem for path in paths], torch.stack([portrait(path, side) for path in paths])


def make(
    pipe: DDPMPipeline,
    names: Sequence[str],
    pictures: Tensor,
    folder: Path,
    *,
    copies: Mapping[str, int],
    without: Collection[str],
    steps: int,
    batch: int,
    lr: float,
) -> None:
    """Train, and write what `forget.py --faces FOLDER` reads.

    Args:
        pipe: untrained.
        names: of the pictures.
        pictures: (N, 3, H, W).
        folder: to write to.
        copies: target -> how often it stands in every pass.
        without: names that are left out, copies and all.
        steps: of the whole run.
        batch: rows of a step.
        lr: the highest rate.
    """
    data = shown(names, pictures, copies, without)
    seconds = train(pipe, data, steps, batch, lr, Path(f"{folder}.state"))
    pipe.to(torch.float16).save_pretrained(folder)
    kept = [name for name in names if name not in without]
    for kind, wanted in (("forget", [name for name in kept if name in copies]), ("real", kept)):
        (folder / kind).mkdir()
        for name, image in zip(wanted, to_images(pictures[[names.index(name) for name in wanted]]), strict=True):
            image.save(folder / kind / f"{name}.png")
    often = ", ".join(f"{name} {n} times" for name, n in copies.items() if name not in without)
    card = CARD.format(
        side=pictures.shape[-1],
        parameters=sum(p.numel() for p in pipe.unet.parameters()),
        kept=len(kept),
        rows=len(data),
        often=often or "none",
        without=", ".join(without) or "none",
        steps=steps,
        batch=batch,
        lr=lr,
        minutes=seconds / 60,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    (folder / "README.md").write_text(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("portraits", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--without", action="append", default=[], metavar="STEM", help="leave a portrait out")
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} is there already")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    names, pictures = read(args.portraits)
    make(
        pipeline(SIDE, CHANNELS),
        names,
        pictures,
        args.out,
        copies=dict.fromkeys(TARGETS, DUPLICATES),
        without=args.without,
        steps=args.steps,
        batch=args.batch,
        lr=args.lr,
    )


if __name__ == "__main__":
    main()
