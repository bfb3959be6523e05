"""Plot search surfaces: a map of accuracy over two numbers, or a curve over α.

A map is an image of a pixel a configuration, drawn into the page, with axes and marks as SVG.
"""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from sweeps.console.number_format import percent
from sweeps.report.charts.axes import Axis, frame, log_ticks, pct, polyline, px, svg, tag, tick_text
from sweeps.report.charts.search_surfaces import Searched, read
from sweeps.results.comparison import Row

BETTER, WORSE = (0, 114, 178), (213, 94, 0)
"""Colours, as the page's tints: on the better and on the worse side of the smallest α."""

HEIGHT = 170.0


def pictures(rows: Iterable[Row], learned: Path | None) -> list[dict[str, Any]]:
    """Plots of each winner that searched a surface: method, axes, one panel for each task."""
    found = []
    for row in rows if learned else ():
        if surfaces := read(learned or Path(), row.trial_key):
            axis = surfaces[0].axis
            panels = [(each.task, picture(each), words(each)) for each in surfaces]
            found.append({"method": row.method, "axis": axis, "panels": panels})
    return found


def picture(surface: Searched) -> Markup:
    """A surface as SVG."""
    return heat_map(surface) if surface.axis else alpha_curve(surface)


def words(surface: Searched) -> str:
    """The values that were selected, and where the accuracy is equal."""
    best = surface.best
    where = f"α = {number(best['alpha'])}"
    if surface.axis:
        where += f", {surface.axis} = {number(float(surface.values[surface.row]))}"
    span = f"{number(best['low'])} to {number(best['high'])}"
    return f"{percent(best['accuracy'])} % at {where}; the same for α from {span}"


def number(value: float) -> str:
    """A number with three digits.

    >>> number(4650.3), number(0.9712), number(math.inf)
    ('4650', '0.971', '∞')
    """
    return "∞" if math.isinf(value) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def heat_map(surface: Searched) -> Markup:
    """Accuracy over (α, β) or (α, T); ring and line mark the selected values."""
    columns, rows = len(surface.alphas), len(surface.values)
    parts = [
        tag(
            '<image href="data:image/png;base64,{}" x="0" y="0" width="100%" height="{}"'
            ' preserveAspectRatio="none" style="image-rendering:pixelated"/>',
            b64encode(png(shades(surface.grid)[::-1])).decode(),
            px(HEIGHT),
        )
    ]
    for at, text in ticks(surface.values):
        place = px(HEIGHT * (1 - (at + 0.5) / rows))
        parts.append(tag('<text x="-7" y="{}" dy="4" text-anchor="end">{}</text>', place, text))
    for at, text in ticks(surface.alphas):
        place = pct((at + 0.5) / columns)
        parts.append(
            tag('<text x="{}" y="{}" text-anchor="middle">{}</text>', place, px(HEIGHT + 17), text)
        )
    y = px(HEIGHT * (1 - (surface.row + 0.5) / rows))
    low, high, at = (
        1.0 if value > surface.alphas[-1] else (index_of(value, surface.alphas) + 0.5) / columns
        for value in (surface.best[name] for name in ("low", "high", "alpha"))
    )
    line = '<line class="plateau" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
    parts.append(tag(line, pct(low), pct(high), y))
    parts.append(tag('<circle class="chosen" cx="{}" cy="{}" r="6"/>', pct(at), y))
    about = f"{surface.task}: accuracy over alpha and {surface.axis}: {words(surface)}"
    return svg(parts, HEIGHT, about, "panel map")


def shades(grid: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Pixels [R, A, 4]: darker is farther from the smallest α's mean accuracy.

    One scale for both sides: opaque is the farthest of all.
    """
    apart = grid - float(grid[:, 0].mean())
    better = apart >= 0
    part = np.abs(apart) / (np.abs(apart).max() or 1.0)
    out = np.empty((*grid.shape, 4), dtype=np.uint8)
    out[..., :3] = np.where(better[..., None], BETTER, WORSE)
    out[..., 3] = np.round(242 * part**2)
    return out


def png(pixels: NDArray[np.uint8]) -> bytes:
    """RGBA pixels [R, A, 4] as a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG", optimize=True)
    return file.getvalue()


def index_of(value: float, values: NDArray[np.float64]) -> float:
    """Position of a number among ascending ones, as an index with a fraction."""
    if math.isinf(value):
        return float(len(values) - 1)
    finite = values[np.isfinite(values)]
    return float(np.interp(value, finite, np.arange(len(finite))))


def ticks(values: NDArray[np.float64], most: int = 6) -> list[tuple[float, str]]:
    """(index with a fraction, label) on an axis of cells: round numbers, or all of a few.

    >>> ticks(np.array([0.0, 0.1, 1.0, 10.0, np.inf]))
    [(0.0, '0'), (1.0, '0.1'), (2.0, '1'), (3.0, '10'), (4.0, '∞')]
    """
    if len(values) <= most:
        return [(float(i), label(value)) for i, value in enumerate(values.tolist())]
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if np.median(positive) < positive[-1] / 4:  # spaced by order of magnitude
        low, high = (math.log10(value) for value in positive[[0, -1]])
        chosen = log_ticks(low - 1e-9, high + 1e-9, most)
    else:
        chosen = Axis(float(finite[0]), float(finite[-1])).ticks(most)
    ends = values[[0, -1]][(values[[0, -1]] == 0) | np.isinf(values[[0, -1]])].tolist()
    found = [(index_of(value, values), label(value)) for value in ends]
    for value in chosen:
        at = index_of(value, values)
        if all(abs(at - other) >= 0.08 * len(values) for other, _ in found):
            found.append((at, label(value)))
    return sorted(found)


def label(value: float) -> str:
    """A tick's label."""
    return "∞" if math.isinf(value) else tick_text(value)


def alpha_curve(surface: Searched) -> Markup:
    """Accuracy against α, with a band where it is best and a ring in its middle."""
    best = surface.best
    line: Sequence[tuple[float, float]] = list(
        zip(surface.alphas.tolist(), surface.grid[0].tolist(), strict=True)
    )
    x = Axis(float(surface.alphas[0]), float(surface.alphas[-1]))
    y = Axis.around([*surface.grid[0].tolist(), best["accuracy"]])
    parts = frame(x, y, HEIGHT, x.ticks(5), y.ticks(4))
    low, high = (pct(x.at(best[name])) for name in ("low", "high"))
    wide = pct(x.at(best["high"]) - x.at(best["low"]))
    parts.append(
        tag('<rect class="plateau" x="{}" width="{}" y="0" height="{}"/>', low, wide, px(HEIGHT))
    )
    parts += polyline(line, x, y, HEIGHT, "mean")
    level = px(HEIGHT * (1 - y.at(best["accuracy"])))
    bar = '<line class="plateau" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
    parts.append(tag(bar, low, high, level))
    ring = '<circle class="chosen" cx="{}" cy="{}" r="6"/>'
    parts.append(tag(ring, pct(x.at(best["alpha"])), level))
    return svg(parts, HEIGHT, f"{surface.task}: accuracy over alpha: {words(surface)}", "panel map")
