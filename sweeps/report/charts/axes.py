"""SVG axis of the interval plot, whose width follows the page: it is drawn without scripts.

Horizontal places are percentages and the text is in pixels, so a chart is as legible on a phone as
on a wide screen; colours are classes of the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Axis:
    """Scale from values to fractions of the plot's width or height."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Iterable[float], pad: float = 0.05) -> Axis:
        """An axis with margin around the values; one value also gets a range."""
        found = list(values)
        low, high = min(found), max(found)
        room = (high - low) * pad or max(abs(high) * pad, 0.02)
        return cls(low - room, high + room)

    def at(self, value: float) -> float:
        """Position of `value`, from 0 to 1."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values on the axis, at most `most`."""
        raw = (self.high - self.low) / most
        unit = 10 ** math.floor(math.log10(raw))
        step = next(unit * m for m in (1, 2, 5, 10, 20) if unit * m >= raw)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(i * step, 12) for i in range(first, last + 1)]


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
