"""report.html: a Report for people, in one file. Pictures are put in only when the caller hands some over."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader
from PIL import Image

from hotfix.container import write_atomically
from hotfix.pictures import to_images
from hotfix.shapes import Pictures

if TYPE_CHECKING:
    from hotfix.report import Diffusion, Report

ZOOM = 3


@dataclass
class Gallery:
    """Before/after pictures for a page that was asked for. A report never holds them."""

    rows: list[tuple[str, Pictures, Pictures]] = field(default_factory=list)


def sheet(rows: list[Pictures], zoom: int = ZOOM, gap: int = 2) -> Image.Image:
    """A contact sheet: one row of pictures after another, every pixel enlarged."""
    columns = max(len(row) for row in rows)
    height, width = rows[0].shape[-2:]
    page = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + gap) + gap), "#888888")
    for y, row in enumerate(rows):
        for x, image in enumerate(to_images(row)):
            page.paste(image, (gap + x * (width + gap), gap + y * (height + gap)))
    return page.resize((page.width * zoom, page.height * zoom), Image.Resampling.NEAREST)


def curve(rows: "list[Diffusion]", field: str, width: int = 320, height: int = 120) -> str:
    """SVG points of one column over t in [0, 1], values in [0, 1]."""
    points = [(row.t, getattr(row, field)) for row in rows]
    values = [(t, v.k / v.n if hasattr(v, "k") else v) for t, v in points]
    return " ".join(f"{t * width:.1f},{height - max(0.0, min(1.0, v)) * height:.1f}" for t, v in values)


def write(report: "Report", path: Path, gallery: Gallery | None = None) -> Path:
    """Write the page.

    Args:
        report: what was measured.
        path: an .html file.
        gallery: before/after pictures; they show what was to be forgotten, so they are only there if you ask.
    """
    environment = Environment(loader=PackageLoader("hotfix", "templates"), autoescape=True, trim_blocks=True)
    kinds: dict[str, list[Diffusion]] = {}
    for row in report.diffusion:
        kinds.setdefault(row.caption, []).append(row)
    galleries = [(words, _png(before, after)) for words, before, after in (gallery.rows if gallery else [])]
    text = environment.get_template("report.html.j2").render(
        report=report, kinds=kinds, curve=curve, galleries=galleries, misses=report.misses
    )
    write_atomically(path, text.encode())
    return path


def _png(before: Pictures, after: Pictures) -> str:
    buffer = io.BytesIO()
    sheet([before, after]).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
