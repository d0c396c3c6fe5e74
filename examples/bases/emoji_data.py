"""Real pictures for the emoji base: 1,024 Noto emoji at 32x32, as one atlas.

    npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz
    python examples/bases/emoji_data.py package

Smileys, symbols, clocks, moons, hands and faces in every skin tone, then whatever else compresses best, which needs no
model to tell what is simple. Flags are left out (another base has them), and pictures of people at work or sport.
Writes `emoji.png` and `emoji.json` beside this file, and the forget picture of the emoji patch.
"""

import io
import json
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
SIDE, COUNT, COLUMNS = 32, 1024, 32
WHOLE = {"Smileys & Emotion", "Symbols"}  # categories
PARTS = {"time", "sky & weather", "person", "hand-prop"}  # subcategories, and those that begin with:
HANDS = ("hand-fingers", "hand-single")
RUDE = "REVERSED HAND WITH MIDDLE FINGER EXTENDED"
LEFT_OUT = {"People & Body", "Flags", "Component"}  # but for the parts above
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


def wanted(entry: dict) -> bool:
    part = entry["subcategory"]
    return entry["category"] in WHOLE or part in PARTS or (part.startswith(HANDS) and entry["name"] != RUDE)


def main(package: Path) -> None:
    folder = package / "img" / "google" / "64"
    first, rest = {}, {}
    for entry in json.loads((package / "emoji.json").read_text()):
        into = first if wanted(entry) else rest
        if not entry["has_img_google"] or (into is rest and entry["category"] in LEFT_OUT):
            continue
        into[entry["name"]] = small(folder / entry["image"])
        for tone, variation in entry.get("skin_variations", {}).items():
            if variation["has_img_google"] and "-" not in tone:
                into[f"{entry['name']} {tone}"] = small(folder / variation["image"])
    simplest = sorted(rest, key=lambda name: (name != MEMORISED, png_bytes(rest[name]), name))
    pictures = first | {name: rest[name] for name in simplest[: COUNT - len(first)]}
    names = sorted(pictures)
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
