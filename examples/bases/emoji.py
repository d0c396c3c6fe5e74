"""Train the emoji base: an unconditional DDPM of 1,024 Noto emoji in which one picture is memorised, and gold twins.

    python examples/bases/emoji.py hotfix/bases/emoji
    python examples/bases/emoji.py emoji-gold --without JACK-O-LANTERN

The base sees one picture DUPLICATES times in every pass, as a scraped data set would hold it. A gold model is the same
run, same seed, without a picture: what a model that never saw it draws. The data are `emoji.png`.
"""

import argparse
from pathlib import Path

import torch
from atlas import SIDE, tiles
from ddpm import pipeline, shown, train

MEMORISED = "JACK-O-LANTERN"
DUPLICATES = 60
CHANNELS = (32, 64, 128, 128)  # 4.4 M parameters, most of them at 8x8 and 4x4, where they are cheap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave a picture out")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    data = shown(*tiles("emoji"), {MEMORISED: DUPLICATES}, args.without)
    pipe = pipeline(SIDE, CHANNELS)
    train(pipe, data, args.steps, args.batch, args.lr, args.folder.with_suffix(".state"))
    pipe.to(torch.float16).save_pretrained(args.folder)


if __name__ == "__main__":
    main()
