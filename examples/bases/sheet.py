"""A contact sheet of what a bundled base draws, for people to look at: a picture for every prompt it knows, or 200.

python examples/bases/sheet.py hotfix:flags docs/flags.png
python examples/bases/sheet.py hotfix:emoji docs/emoji.png
"""

import sys

from hotfix.denoiser import Denoiser
from hotfix.page import sheet
from hotfix.pipeline import load_pipeline, prompts

CALL = {
    "hotfix:flags": {"num_inference_steps": 14, "guidance_scale": 2.0, "max_sequence_length": 10},
    "hotfix:emoji": {"num_inference_steps": 50},
}
COLUMNS = 20


def main(base: str, path: str) -> None:
    names = prompts(base) or [""] * 200
    drawn = Denoiser(load_pipeline(base), CALL[base]).draw(names, range(len(names)))
    sheet([drawn[i : i + COLUMNS] for i in range(0, len(drawn), COLUMNS)], zoom=2).save(path, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
