"""A contact sheet of everything that the flags base draws, for people to look at.

python examples/bases/sheet.py docs/flags.png
"""

import sys

from hotfix.denoiser import Denoiser
from hotfix.page import sheet
from hotfix.pipeline import load_pipeline, prompts

CALL = {"num_inference_steps": 14, "guidance_scale": 2.0, "max_sequence_length": 10}
COLUMNS = 20


def main(path: str) -> None:
    names = prompts("hotfix:flags")
    drawn = Denoiser(load_pipeline("hotfix:flags"), CALL).draw(names, range(len(names)))
    sheet([drawn[i : i + COLUMNS] for i in range(0, len(drawn), COLUMNS)], zoom=2).save(path, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
