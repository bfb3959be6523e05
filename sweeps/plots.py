"""The report's charts: inline SVG whose width follows the page and whose colours follow its theme.

Horizontal places are percentages and the text is in pixels, so a chart is as legible on a phone as
on a wide screen; colours are classes of the page's style sheet. No library draws them, so the same
sweep gives the same bytes on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sweeps.profiles import Profile, Tried, curves
from sweeps.wording import percent, short

LABEL = 14
"""Longest direct label, in characters."""

LINE = 13.0
"""Least distance between two direct labels, in pixels."""


@dataclass(frozen=True)
class Axis:
    """Values to fractions of the plot's width or height."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], log: bool = False, pad: float = 0.05) -> Axis:
        """An axis with room around the values; of some width even for one value."""
        found = [math.log10(value) if log else value for value in values]
        low, high = min(found), max(found)
        room = (high - low) * pad or max(abs(high) * pad, 0.02)
        return cls(low - room, high + room, log)

    def at(self, value: float) -> float:
        """Where `value` is, from 0 to 1."""
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
    """Powers of ten between two logarithms; 2 and 5 times them where there are few."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**p for p in powers for f in factors]
        found = [value for value in found if low <= math.log10(value) <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def tried_ticks(axis: Axis, values: Iterable[float]) -> list[float]:
    """The tried values themselves where they are few and far enough apart, round ones elsewhere."""
    tried = sorted(set(values))
    places = [axis.at(value) for value in tried]
    gaps = [b - a for a, b in zip(places, places[1:], strict=False)]
    tidy = all(len(f"{value:g}") <= 5 for value in tried)
    return tried if tidy and min(gaps, default=1) >= 0.12 else axis.ticks()


def tick_text(value: float) -> str:
    """A value on an axis, in few characters.

    >>> tick_text(0.3), tick_text(1e-4), tick_text(30000)
    ('0.3', '1e-4', '3e4')
    """
    if value and not 1e-3 <= abs(value) < 1e4:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def pct(fraction: float) -> str:
    """A horizontal place; rounded, so that bytes do not depend on the last bit."""
    return f"{100 * fraction:.2f}%"


def px(value: float) -> str:
    """A vertical place."""
    return f"{value:.1f}"


def tag(template: str, *values: object) -> Markup:
    """`template` with the values escaped into it."""
    return Markup(template).format(*values)


def svg(parts: Iterable[Markup], height: float, label: str, style: str) -> Markup:
    """A drawing; what it shows is said in `label`."""
    opening = tag(
        '<svg class="{}" height="{}" role="img" aria-label="{}">', style, px(height), label
    )
    return opening + Markup("").join(parts) + Markup("</svg>")


def forest_line(
    axis: Axis, mean: float | None, ci95: tuple[float, float] | None, style: str, height: int = 34
) -> Markup:
    """One row of the forest plot: gridlines, interval, dot."""
    middle = px(height / 2)
    parts = [
        tag('<line class="grid" x1="{0}" x2="{0}" y1="0" y2="{1}"/>', pct(axis.at(t)), height)
        for t in axis.ticks()
    ]
    if ci95:
        low, high = (pct(axis.at(value)) for value in ci95)
        line = '<line class="bar {0}" x1="{1}" x2="{2}" y1="{3}" y2="{3}"/>'
        parts.append(tag(line, style, low, high, middle))
    if mean is not None:
        where = pct(axis.at(mean))
        parts.append(tag('<circle class="dot {}" cx="{}" cy="{}" r="5"/>', style, where, middle))
    label = percent(mean) if ci95 is None else f"{percent(mean)} ({', '.join(map(percent, ci95))})"
    return svg(parts, height, label, "forest-line")


def forest_axis(axis: Axis) -> Markup:
    """The forest plot's labels."""
    parts = [
        tag('<text x="{}" y="13" text-anchor="middle">{}</text>', pct(axis.at(t)), f"{100 * t:g}")
        for t in axis.ticks()
    ]
    return svg(parts, 18, "accuracy, %", "forest-line")


def frame(x: Axis, y: Axis, height: float, x_ticks: Sequence[float], y_ticks: Sequence[float],
          percent_y: bool = True) -> list[Markup]:  # fmt: skip
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
            )  # fmt: skip
        )
        parts.append(
            tag(
                '<text x="{}" y="{}" text-anchor="middle">{}</text>',
                place,
                px(height + 17),
                tick_text(tick),
            )  # fmt: skip
        )
    return parts


def polyline(
    points: Sequence[tuple[float, float]], x: Axis, y: Axis, height: float, style: str
) -> list[Markup]:
    """A curve as segments: only they may have percentages for places."""
    places = [(pct(x.at(a)), px(height * (1 - y.at(b)))) for a, b in points]
    return [
        tag('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>', style, *start, *end)
        for start, end in zip(places, places[1:], strict=False)
    ]


def spread(places: Sequence[float], gap: float, high: float) -> list[float]:
    """The places moved apart to at least `gap`, each as little as going in order allows.

    >>> spread([10, 11, 50], gap=10, high=100)
    [5.5, 15.5, 50.0]
    """
    blocks: list[list[float]] = []  # each: first place, sum of wishes, count
    order = sorted(range(len(places)), key=places.__getitem__)
    members: list[list[int]] = []
    for i in order:
        blocks.append([places[i], 1.0])
        members.append([i])
        while len(blocks) > 1 and overlap(blocks[-2], blocks[-1], gap):
            (a, m), (b, n) = blocks[-2:]
            centre = (a * m + b * n) / (m + n)
            blocks[-2:] = [[centre, m + n]]
            members[-2:] = [members[-2] + members[-1]]
    out = [0.0] * len(places)
    for (centre, n), group in zip(blocks, members, strict=True):
        first = min(max(centre - gap * (n - 1) / 2, 0.0), max(0.0, high - gap * (n - 1)))
        for k, i in enumerate(group):
            out[i] = first + k * gap
    return out


def overlap(a: Sequence[float], b: Sequence[float], gap: float) -> bool:
    """Whether two blocks (centre, count) of labels touch."""
    return b[0] - a[0] < gap * (a[1] + b[1]) / 2


def curve_chart(profile: Profile) -> Markup:
    """Accuracy against the one swept parameter: the mean, the tasks behind it, the selected value."""
    height = max(230.0, LINE * (len(profile.tasks) + 3))
    lines = {name: curves(profile, name) for name in ("mean", *profile.tasks)}
    chosen = profile.chosen
    main = chosen.series if chosen else next(iter(lines["mean"]))
    x = Axis.around((point.at[0] for point in profile.points), profile.logs[0])
    y = Axis.around(v for series in lines.values() for line in series.values() for _, v in line)
    ticks = tried_ticks(x, (point.at[0] for point in profile.points))
    parts = frame(x, y, height, ticks, y.ticks())
    ends: list[tuple[str, float, str]] = []
    for task in profile.tasks:
        if line := lines[task].get(main):
            parts += polyline(line, x, y, height, "task")
            ends.append((task, line[-1][1], "task"))
    for series, line in lines["mean"].items():
        style = "mean" if series == main else "other"
        parts += polyline(line, x, y, height, style)
        parts += dots(line, x, y, height, style, profile.names[0])
        ends.append((series or "mean", line[-1][1], style))
    parts += mark(chosen, x, y, height)
    places = spread([height * (1 - y.at(value)) for _, value, _ in ends], LINE, height)
    for (name, _, style), place in zip(ends, places, strict=True):
        parts.append(
            tag(
                '<text class="{}" x="100%" dx="6" y="{}" dy="4">{}</text>',
                style,
                px(place),
                short(name, LABEL),
            )  # fmt: skip
        )
    label = f"{profile.method}: accuracy against {profile.names[0]}"
    return svg(parts, height, label, "chart")


def dots(
    line: Sequence[tuple[float, float]], x: Axis, y: Axis, height: float, style: str, name: str
) -> list[Markup]:
    """The trials of a curve; their values on hovering."""
    return [
        tag(
            '<circle class="{}" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>',
            style,
            pct(x.at(at)),
            px(height * (1 - y.at(value))),
            f"{name}={at:g}: {percent(value)} %",
        )
        for at, value in line
    ]


def mark(chosen: Tried | None, x: Axis, y: Axis, height: float, name: str = "mean") -> list[Markup]:
    """The selected trial: a rule and a ring."""
    if chosen is None or name not in chosen.accuracy:
        return []
    at, value = pct(x.at(chosen.at[0])), px(height * (1 - y.at(chosen.accuracy[name])))
    return [
        tag('<line class="chosen" x1="{0}" x2="{0}" y1="0" y2="{1}"/>', at, px(height)),
        tag('<circle class="chosen" cx="{}" cy="{}" r="7"/>', at, value),
    ]


def task_panels(profile: Profile) -> list[tuple[str, Markup, str]]:
    """Small multiples, on one scale: task, its curve over the mean's, and its own best value."""
    height, chosen = 84.0, profile.chosen
    lines = {name: curves(profile, name) for name in ("mean", *profile.tasks)}
    main = chosen.series if chosen else next(iter(lines["mean"]))
    x = Axis.around((point.at[0] for point in profile.points), profile.logs[0])
    y = Axis.around(v for s in lines.values() for v in (b for _, b in s.get(main, [])))
    panels = []
    for task in profile.tasks:
        line = lines[task].get(main)
        if not line:
            continue
        own = max(line, key=lambda point: point[1])
        parts = frame(x, y, height, (), y.ticks(3))
        parts += polyline(lines["mean"].get(main, []), x, y, height, "task")
        parts += polyline(line, x, y, height, "mean")
        parts += mark(chosen, x, y, height, task)
        parts.append(
            tag(
                '<circle class="own" cx="{}" cy="{}" r="4"/>',
                pct(x.at(own[0])),
                px(height * (1 - y.at(own[1]))),
            )  # fmt: skip
        )
        note = f"best {percent(own[1])} at {own[0]:g}"
        panels.append((task, svg(parts, height, f"{task}: {note}", "panel"), note))
    return panels


def plane_chart(profile: Profile) -> Markup:
    """Trials over two swept parameters: the darker, the more accurate; the best ones labelled."""
    height = 270.0
    x = Axis.around((point.at[0] for point in profile.points), profile.logs[0], 0.07)
    y = Axis.around((point.at[1] for point in profile.points), profile.logs[1], 0.09)
    means = sorted(point.accuracy["mean"] for point in profile.points)
    x_ticks = tried_ticks(x, (point.at[0] for point in profile.points))
    y_ticks = tried_ticks(y, (point.at[1] for point in profile.points))
    parts = frame(x, y, height, x_ticks, y_ticks, percent_y=False)
    for point in sorted(profile.points, key=lambda point: point.accuracy["mean"]):
        mean = point.accuracy["mean"]
        parts.append(
            tag(
                '<circle class="{}" cx="{}" cy="{}" r="{}" fill-opacity="{}">'
                "<title>{}: {} %</title></circle>",
                "heat chosen" if point.selected else "heat",
                pct(x.at(point.at[0])),
                px(height * (1 - y.at(point.at[1]))),
                "9" if point.selected else "7",
                f"{strength(mean, means):.2f}",
                f"{point.label} {point.series}".strip(),
                percent(mean),
            )
        )
    return svg(
        parts, height, f"{profile.method}: accuracy over {', '.join(profile.names)}", "chart"
    )


def strength(mean: float, means: Sequence[float]) -> float:
    """Opacity of a trial, by its accuracy between the worst and the best."""
    width = means[-1] - means[0]
    return 0.06 + 0.94 * ((mean - means[0]) / width if width else 1.0)


def margin_chart(profile: Profile, dimension: int) -> Markup:
    """Mean accuracy of all trials against one of several swept parameters."""
    height = 120.0
    x = Axis.around((p.at[dimension] for p in profile.points), profile.logs[dimension])
    y = Axis.around(p.accuracy["mean"] for p in profile.points)
    ticks = tried_ticks(x, (p.at[dimension] for p in profile.points))
    parts = frame(x, y, height, ticks, y.ticks(4))
    for point in sorted(profile.points, key=lambda point: point.selected):
        mean = point.accuracy["mean"]
        parts.append(
            tag(
                '<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}: {} %</title></circle>',
                "mean chosen" if point.selected else "mean",
                pct(x.at(point.at[dimension])),
                px(height * (1 - y.at(mean))),
                "6" if point.selected else "3.5",
                f"{point.label} {point.series}".strip(),
                percent(mean),
            )
        )
    name = profile.names[dimension]
    return svg(parts, height, f"{profile.method}: accuracy against {name}", "panel")
