"""SVG axes and ticks, whose width follows the page.

Horizontal places are percentages and the text is in pixels, so a chart is as legible on a phone as
on a wide screen; colours are classes of the page's style sheet. No library draws them, so the same
sweep gives the same bytes on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup


@dataclass(frozen=True)
class Axis:
    """Scale from values to fractions of the plot's width or height."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], log: bool = False, pad: float = 0.05) -> Axis:
        """An axis with margin around the values; one value also gets a range."""
        found = [math.log10(value) if log else value for value in values]
        low, high = min(found), max(found)
        room = (high - low) * pad or max(abs(high) * pad, 0.02)
        return cls(low - room, high + room, log)

    def at(self, value: float) -> float:
        """Position of `value`, from 0 to 1."""
        place = math.log10(value) if self.log else value
        return (place - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values on the axis, at most `most`."""
        if self.log:
            return log_ticks(self.low, self.high, most)
        raw = (self.high - self.low) / most
        unit = 10 ** math.floor(math.log10(raw))
        step = next(unit * m for m in (1, 2, 5, 10, 20) if unit * m >= raw)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten between two logarithms; also 2 and 5 times them if there are few."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**p for p in powers for f in factors]
        found = [value for value in found if low <= math.log10(value) <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def tick_text(value: float) -> str:
    """Tick label of a value, in few characters.

    >>> tick_text(0.3), tick_text(1e-4), tick_text(30000)
    ('0.3', '1e-4', '3e4')
    """
    if value and not 1e-3 <= abs(value) < 1e4:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def pct(fraction: float) -> str:
    """A horizontal position in percent; rounded, so that bytes do not depend on the last bit."""
    return f"{100 * fraction:.2f}%"


def px(value: float) -> str:
    """A vertical position in pixels."""
    return f"{value:.1f}"


def tag(template: str, *values: object) -> Markup:
    """Format `template` with escaped values."""
    return Markup(template).format(*values)


def svg(parts: Iterable[Markup], height: float, label: str, style: str) -> Markup:
    """An SVG drawing with the accessible name `label`."""
    opening = tag(
        '<svg class="{}" height="{}" role="img" aria-label="{}">', style, px(height), label
    )
    return opening + Markup("").join(parts) + Markup("</svg>")


def frame(
    x: Axis,
    y: Axis,
    height: float,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    percent_y: bool = True,
) -> list[Markup]:
    """Gridlines and tick labels."""
    parts = []
    for tick in y_ticks:
        place, text = px(height * (1 - y.at(tick))), f"{100 * tick if percent_y else tick:g}"
        parts.append(tag('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/>', place))
        parts.append(tag('<text x="-7" y="{}" dy="4" text-anchor="end">{}</text>', place, text))
    for tick in x_ticks:
        place = pct(x.at(tick))
        parts.append(
            tag(
                '<line class="tick" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>',
                place,
                px(height),
                px(height + 4),
            )
        )
        parts.append(
            tag(
                '<text x="{}" y="{}" text-anchor="middle">{}</text>',
                place,
                px(height + 17),
                tick_text(tick),
            )
        )
    return parts


def polyline(
    points: Sequence[tuple[float, float]], x: Axis, y: Axis, height: float, style: str
) -> list[Markup]:
    """A curve as segments, because only lines may have positions in percent."""
    places = [(pct(x.at(a)), px(height * (1 - y.at(b)))) for a, b in points]
    return [
        tag('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>', style, *start, *end)
        for start, end in pairwise(places)
    ]
