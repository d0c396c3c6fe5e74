"""Plot: forgetting against drift, every setting a small ring and the best of each method a disc, as a plain SVG.

Left is less drift, down is less of the target. Below the line at 0 it comes back no more than from an exact model of
the data without it.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from xml.sax.saxutils import escape

from benchmarks.forgetting.best import Row
from benchmarks.forgetting.settings import HOTFIX, RIVALS
from benchmarks.forgetting.table import BASE, GOLD

SIDE, GAP, LEFT, TOP, LEGEND = 320, 70, 60, 40, 170
COLOURS = ("#000000", "#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
MORE = ("#ff7f0e", "#5254a3", "#daa520")
NAMES = (BASE, HOTFIX, *RIVALS, GOLD)
COLOUR = dict(zip(NAMES, COLOURS + MORE, strict=True))
TICKS = 5


def points(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[float, float]]:
    """(method, setting) -> mean drift and mean `over` over its subjects."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.numbers["drift"] is not None:
            found.setdefault((row.method, row.setting), []).append(row)
    return {
        key: (mean(r.numbers["drift"] for r in those), mean(r.numbers["over"] for r in those))
        for key, those in sorted(found.items())
    }


def svg(rows: Sequence[Row], best: Mapping[str, Sequence[Row]], bases: Sequence[str]) -> str:
    """One panel for every base.

    Args:
        rows: all units.
        best: method -> its units at the setting that the table shows, the untouched base among them.
        bases: in this order.
    """
    panels = [_panel(i, base, rows, best) for i, base in enumerate(bases)]
    width = LEFT + len(bases) * (SIDE + GAP) + LEGEND
    height = TOP + SIDE + 50
    legend = [
        f'<circle cx="{width - LEGEND}" cy="{TOP + 18 * i}" r="4" fill="{COLOUR[name]}"/>'
        f'<text x="{width - LEGEND + 10}" y="{TOP + 18 * i + 4}">{escape(name.replace("_", " "))}</text>'
        for i, name in enumerate(name for name in NAMES if name in best)
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
    ground = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    return "\n".join([f'{head} font-size="11">', ground, *panels, *legend, "</svg>"]) + "\n"


def _panel(i: int, base: str, rows: Sequence[Row], best: Mapping[str, Sequence[Row]]) -> str:
    every = points([row for row in rows if row.base == base and row.method in (HOTFIX, *RIVALS)])
    discs = {name: points([row for row in those if row.base == base]) for name, those in best.items()}
    spots = [*every.values(), *(spot for found in discs.values() for spot in found.values())]
    far = max(x for x, _ in spots) * 1.05 or 1.0
    low, high = (pick([y for _, y in spots] + [0.0]) for pick in (min, max))
    low, high = low - 0.05 * (high - low) - 1e-6, high + 0.05 * (high - low) + 1e-6
    left = LEFT + i * (SIDE + GAP)

    def at(x: float, y: float) -> tuple[str, str]:
        return f"{left + SIDE * x / far:.1f}", f"{TOP + SIDE * (high - y) / (high - low):.1f}"

    def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
        (a, b), (c, d) = at(x1, y1), at(x2, y2)
        return f'<line x1="{a}" y1="{b}" x2="{c}" y2="{d}" {style}/>'

    def text(x: str, y: str, words: str, anchor: str = "middle") -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'

    parts = [
        f'<rect x="{left}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#888888"/>',
        line(0, 0, far, 0, 'stroke="#888888" stroke-dasharray="4 3"'),
        text(str(left + SIDE // 2), str(TOP - 12), base),
        text(str(left + SIDE // 2), str(TOP + SIDE + 36), "drift of other pictures, RMSE in [0, 1]"),
        f'<g transform="translate({left - 44} {TOP + SIDE // 2}) rotate(-90)">'
        f"{text('0', '0', 'similarity to the target, q95, above a model without it')}</g>",
    ]
    for k in range(TICKS):
        x, y = far * k / (TICKS - 1), low + (high - low) * k / (TICKS - 1)
        parts.append(text(at(x, low)[0], str(TOP + SIDE + 16), f"{x:.3f}"))
        parts.append(text(str(left - 5), at(0, y)[1], f"{y:.2f}", "end"))
    for (method, setting), spot in every.items():
        x, y = at(*spot)
        title = f"<title>{escape(f'{method} {setting}')}</title>"
        parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="none" stroke="{COLOUR[method]}">{title}</circle>')
    for name, found in discs.items():
        for (_, setting), spot in found.items():
            x, y = at(*spot)
            title = f"<title>{escape(f'{name} {setting}')}</title>"
            parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{COLOUR[name]}">{title}</circle>')
    return "\n".join(parts)
