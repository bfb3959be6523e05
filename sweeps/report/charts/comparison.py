"""The interval plot of the HTML report, as inline SVG: it is drawn without scripts."""

from __future__ import annotations

from markupsafe import Markup

from sweeps.console.number_format import percent
from sweeps.report.charts.axes import Axis, pct, svg, tag


def forest_line(
    axis: Axis, mean: float | None, ci95: tuple[float, float] | None, style: str
) -> Markup:
    """One row of the forest plot: gridlines, interval, dot."""
    parts = [
        tag('<line class="grid" x1="{0}" x2="{0}" y1="0" y2="100%"/>', pct(axis.at(t)))
        for t in axis.ticks()
    ]
    if ci95:
        low, high = (pct(axis.at(value)) for value in ci95)
        line = '<line class="bar {0}" x1="{1}" x2="{2}" y1="50%" y2="50%"/>'
        parts.append(tag(line, style, low, high))
    if mean is not None:
        dot = '<circle class="dot {}" cx="{}" cy="50%" r="5"/>'
        parts.append(tag(dot, style, pct(axis.at(mean))))
    label = percent(mean) if ci95 is None else f"{percent(mean)} ({', '.join(map(percent, ci95))})"
    return svg(parts, 34, label, "forest-line")


def forest_axis(axis: Axis) -> Markup:
    """Tick labels of the forest plot."""
    parts = [
        tag('<text x="{}" y="13" text-anchor="middle">{}</text>', pct(axis.at(t)), f"{100 * t:g}")
        for t in axis.ticks()
    ]
    return svg(parts, 18, "accuracy, %", "forest-line")
