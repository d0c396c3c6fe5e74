"""Real pictures for the flags base: Debian's public-domain flags as one atlas, and the current flags as surrogates.

    apt-get download iso-flags-png-320x240 && dpkg -x iso-flags-png-320x240_*.deb debian
    npm pack flag-icons@7.5.0 && tar xzf flag-icons-7.5.0.tgz
    python examples/bases/flags_data.py debian/usr/share/iso-flags-png-320x240 package

Writes `flags.png` and `flags.json` beside this file, and the forget and surrogate pictures of the five flag patches.
Every picture is 32x32 with the 32x24 flag between two white bars, so that a pipeline's square default fits it.
"""

import io
import json
import re
import sys
import unicodedata
from pathlib import Path

import resvg_py
from PIL import Image

HERE = Path(__file__).parent
SIDE, HEIGHT, COLUMNS = 32, 24, 20
NOT_IN_FLAG_ICONS = {
    "_basque": "basque country",
    "_catalonia": "catalonia",
    "_earth_pernefeldt": "earth",
    "_galicia": "galicia",
    "_olympic": "olympic games",
    "_scotland": "scotland",
    "_united_nations": "united nations",
    "_wales": "wales",
    "eo": "esperanto",
}
OUTDATED = {
    "iq": "iraq-2008",
    "mr": "mauritania-2017",
    "sy": "syria-2025",
    "kg": "kyrgyzstan-2023",
    "hn": "honduras-2022",
}


def caption(name: str) -> str:
    """Lower-case ASCII words: "Côte d'Ivoire" -> "cote divoire"."""
    plain = unicodedata.normalize("NFKD", name.replace("-", " ")).encode("ascii", "ignore").decode()
    return re.sub("[^a-z ]", "", plain.lower())


def letterboxed(picture: Image.Image) -> Image.Image:
    """Any flag -> 32x32 RGB: its transparent margin cut off, flattened on white, the flag 32x24 in the middle."""
    picture = picture.convert("RGBA")
    picture = picture.crop(picture.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox())
    flat = Image.new("RGBA", picture.size, "white")
    flat.alpha_composite(picture)
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(flat.convert("RGB").resize((SIDE, HEIGHT), Image.Resampling.LANCZOS), (0, (SIDE - HEIGHT) // 2))
    return square


def main(debian: Path, flag_icons: Path) -> None:
    names = {c["code"]: c["name"] for c in json.loads((flag_icons / "country.json").read_text())}
    captions = {code: caption(name) for code, name in names.items()} | NOT_IN_FLAG_ICONS
    codes = [f.stem for f in sorted(debian.glob("*.png")) if f.stem in captions]
    atlas = Image.new("RGB", (SIDE * COLUMNS, SIDE * -(-len(codes) // COLUMNS)), "white")
    for i, code in enumerate(codes):
        square = letterboxed(Image.open(debian / f"{code}.png"))
        atlas.paste(square, (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
        if code in OUTDATED:
            svg = resvg_py.svg_to_bytes(svg_path=str(flag_icons / "flags" / "4x3" / f"{code}.svg"), width=640)
            current = letterboxed(Image.open(io.BytesIO(bytes(svg))))
            for kind, picture in (("forget", square), ("surrogate", current)):
                folder = HERE.parents[1] / "patches" / OUTDATED[code] / kind
                folder.mkdir(parents=True, exist_ok=True)
                picture.save(folder / f"{code}.png", optimize=True)
    atlas.save(HERE / "flags.png", optimize=True)
    rows = ",\n".join(json.dumps([code, captions[code]]) for code in codes)
    (HERE / "flags.json").write_text(f"[\n{rows}\n]\n")
    print(f"{len(codes)} flags")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
