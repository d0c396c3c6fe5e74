"""report.html: a Report for people, in one file. Pictures are put in only when the caller hands some over."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import Environment, PackageLoader
from PIL import Image
from torch import Tensor
from torch.nn import functional

from hotfix.container import write_atomically
from hotfix.pictures import to_images
from hotfix.shapes import Pictures

if TYPE_CHECKING:
    from hotfix.findings import Diffusion, TimestepWindow
    from hotfix.report import Report

ZOOM = 3


@dataclass
class Gallery:
    """Before/after pictures for a page that was asked for. A report never holds them."""

    show_forget: bool = False  # else what looks like a target is shown as a mosaic of 4 x 4
    rows: list[tuple[str, list[Pictures]]] = field(default_factory=list)

    def add(self, words: str, rows: Sequence[Pictures], alike: Callable[[Pictures], Tensor]) -> None:
        """Keep pictures of the same seeds, a row from before and one from after.

        Args:
            words: what they are of.
            rows: (B, 3, H, W) each.
            alike: which of some pictures look like a target, (B,) bool.
        """
        if not self.show_forget:
            rows = [torch.where(alike(x)[:, None, None, None], mosaic(x), x) for x in rows]
        self.rows.append((words, list(rows)))


def mosaic(pictures: Pictures) -> Pictures:
    """Sixteen colours of each picture, which nothing else of it can be had from."""
    return functional.interpolate(functional.adaptive_avg_pool2d(pictures, 4), pictures.shape[-2:])


def sheet(rows: list[Pictures], zoom: int = ZOOM, gap: int = 2) -> Image.Image:
    """A contact sheet: one row of pictures after another, every pixel enlarged."""
    columns = max(len(row) for row in rows)
    height, width = rows[0].shape[-2:]
    page = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + gap) + gap), "#888888")
    for y, row in enumerate(rows):
        for x, image in enumerate(to_images(row)):
            page.paste(image, (gap + x * (width + gap), gap + y * (height + gap)))
    return page.resize((page.width * zoom, page.height * zoom), Image.Resampling.NEAREST)


def points(t: Sequence[float], values: Sequence[float], width: int = 320, height: int = 120) -> str:
    """SVG points of values in [0, 1] over t in [0, 1]."""
    pairs = zip(t, values, strict=True)
    return " ".join(f"{x * width:.1f},{height - max(0.0, min(1.0, y)) * height:.1f}" for x, y in pairs)


def curve(rows: "list[Diffusion]", field: str) -> str:
    """SVG points of one column over t."""
    values = [getattr(row, field) for row in rows]
    return points([row.t for row in rows], [v.k / v.n if hasattr(v, "k") else v for v in values])


def words(window: "TimestepWindow") -> str:
    """A curve for those who do not see it."""
    peak = max(window.m)
    if peak <= 0:
        return f"{window.caption} caption: shut"
    wide = [t for t, m in zip(window.t, window.m, strict=True) if m >= peak / 2]
    top = window.t[window.m.index(peak)]
    return (
        f"{window.caption} caption: highest ({peak:.2f}) at t = {top:.2f}, "
        f"half as high or more only between t = {wide[0]:.2f} and {wide[-1]:.2f}"
    )


def write(report: "Report", path: Path, gallery: Gallery | None = None) -> Path:
    """Write the page.

    Args:
        report: what was measured.
        path: an .html file.
        gallery: before/after pictures, only there if you ask.
    """
    kinds: dict[str, list[Diffusion]] = {}
    for row in report.diffusion:
        kinds.setdefault(row.caption, []).append(row)
    windows: dict[int, list[TimestepWindow]] = {}
    for window in report.windows:
        windows.setdefault(window.target, []).append(window)
    return _rendered(
        "report.html.j2",
        path,
        gallery,
        report=report,
        kinds=kinds,
        windows=windows,
        curve=curve,
        points=points,
        words=words,
        misses=report.misses,
    )


def beside(title: str, lines: Sequence[str], honest: Sequence[str], path: Path, gallery: Gallery) -> Path:
    """Write the page of two patches side by side.

    Args:
        title: of the page.
        lines: what was measured.
        honest: what it does not say.
        path: an .html file.
        gallery: pictures without either patch, with the first, and with the second.
    """
    rows = "without either, with the first, with the second"
    return _rendered("compare.html.j2", path, gallery, title=title, lines=lines, honest=honest, rows=rows)


def _rendered(template: str, path: Path, gallery: Gallery | None, **values: Any) -> Path:
    environment = Environment(loader=PackageLoader("hotfix", "templates"), autoescape=True, trim_blocks=True)
    pictures = [(words, _png(rows)) for words, rows in (gallery.rows if gallery else [])]
    shown = gallery is not None and gallery.show_forget
    text = environment.get_template(template).render(galleries=pictures, shown=shown, **values)
    write_atomically(path, text.encode())
    return path


def _png(rows: list[Pictures]) -> str:
    buffer = io.BytesIO()
    sheet(rows).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
