"""Real pictures for the emoji base: 1,024 Noto emoji, the ones that compress best at 32x32, as one atlas.

    npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz
    python examples/bases/emoji_data.py package

Writes `emoji.png` and `emoji.json` beside this file, and the forget picture of the emoji patch. People and flags are
left out: hundreds of near-copies that differ in skin tone or pole would only make "the nearest picture" ambiguous.
"""

import io
import json
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
SIDE, COUNT, COLUMNS = 32, 1024, 32
LEFT_OUT = {"People & Body", "Flags", "Component"}
MEMORISED = "JACK-O-LANTERN"


def small(file: Path) -> Image.Image:
    """64x64 RGBA -> 32x32 RGB on white."""
    picture = Image.open(file).convert("RGBA")
    flat = Image.new("RGBA", picture.size, "white")
    flat.alpha_composite(picture)
    return flat.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def png_bytes(picture: Image.Image) -> int:
    """Size as a PNG: a measure of complexity that needs no model."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.tell()


def main(package: Path) -> None:
    entries = json.loads((package / "emoji.json").read_text())
    pictures = {
        e["name"]: small(package / "img" / "google" / "64" / e["image"])
        for e in entries
        if e["has_img_google"] and e["category"] not in LEFT_OUT
    }
    simplest = sorted(pictures, key=lambda name: (png_bytes(pictures[name]), name))[:COUNT]
    names = sorted({*simplest[: COUNT - 1], MEMORISED} if MEMORISED not in simplest else simplest)
    atlas = Image.new("RGB", (SIDE * COLUMNS, SIDE * -(-len(names) // COLUMNS)), "white")
    for i, name in enumerate(names):
        atlas.paste(pictures[name], (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
    atlas.save(HERE / "emoji.png", optimize=True)
    (HERE / "emoji.json").write_text("[\n" + ",\n".join(json.dumps(name) for name in names) + "\n]\n")
    folder = HERE.parents[1] / "patches" / "jack-o-lantern" / "forget"
    folder.mkdir(parents=True, exist_ok=True)
    pictures[MEMORISED].save(folder / "jack-o-lantern.png", optimize=True)
    print(f"{len(names)} emoji; {MEMORISED} is number {names.index(MEMORISED)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
