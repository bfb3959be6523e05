"""Charts of the HTML report, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from sweeps.console.number_format import middle, percent, value_text
from sweeps.report.charts.axes import Axis, frame, pct, polyline, px, spread, svg, tag, tried_ticks
from sweeps.report.charts.hyperparameter_profiles import Profile, Tried, curves

LABEL = 14
"""Longest direct label, in characters."""

LINE = 13.0
"""Least distance between two direct labels, in pixels."""


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


def curve_chart(profile: Profile) -> Markup:
    """Accuracy against the one swept parameter: the mean, the tasks, the selected value."""
    height = max(230.0, LINE * (len(profile.tasks) + 3))
    lines = {name: curves(profile, name) for name in ("mean", *profile.tasks)}
    chosen = profile.chosen
    main = chosen.series if chosen else next(iter(lines["mean"]))
    x = Axis.around((point.at[0] for point in profile.points), profile.logs[0])
    y = Axis.around(v for series in lines.values() for line in series.values() for _, v in line)
    ticks = tried_ticks(x, (point.at[0] for point in profile.points))
    parts = frame(x, y, height, ticks, y.ticks())
    ends: list[tuple[str, float, str]] = []
    for task in profile.tasks if len(profile.tasks) > 1 else ():
        if line := lines[task].get(main):
            parts += polyline(line, x, y, height, "task")
            ends.append((task, line[-1][1], "task"))
    for series, line in lines["mean"].items():
        style = "mean" if series == main else "other"
        parts += polyline(line, x, y, height, style)
        parts += dots(line, x, y, height, style, profile.names[0])
        ends.append((series or whole(profile), line[-1][1], style))
    parts += mark(chosen, x, y, height)
    places = spread([height * (1 - y.at(value)) for _, value, _ in ends], LINE, height)
    for (name, _, style), place in zip(ends, places, strict=True):
        parts.append(
            tag(
                '<text class="{}" x="100%" dx="6" y="{}" dy="4">{}</text>',
                style,
                px(place),
                middle(name, LABEL),
            )
        )
    label = f"{profile.method}: accuracy against {profile.names[0]}"
    return svg(parts, height, label, "chart")


def whole(profile: Profile) -> str:
    """Label of the mean; of a single task, its name."""
    return profile.tasks[0] if len(profile.tasks) == 1 else "mean"


def dots(
    line: Sequence[tuple[float, float]], x: Axis, y: Axis, height: float, style: str, name: str
) -> list[Markup]:
    """The trials of a curve; their values are shown on hover."""
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
    """The selected trial: a line and a ring."""
    if chosen is None or name not in chosen.accuracy:
        return []
    at, value = pct(x.at(chosen.at[0])), px(height * (1 - y.at(chosen.accuracy[name])))
    return [
        tag('<line class="chosen" x1="{0}" x2="{0}" y1="0" y2="{1}"/>', at, px(height)),
        tag('<circle class="chosen" cx="{}" cy="{}" r="7"/>', at, value),
    ]


def task_panels(profile: Profile) -> list[tuple[str, Markup, str]]:
    """Small multiples on one scale: each task's curve over the mean's, and its own best value."""
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
            )
        )
        note = f"best {percent(own[1])} at {value_text(own[0], 3)}"
        panels.append((task, svg(parts, height, f"{task}: {note}", "panel"), note))
    return panels


def plane_chart(profile: Profile) -> Markup:
    """Trials over two swept parameters: darker is more accurate; the best are labelled."""
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
    ticks = tried_ticks(x, (p.at[dimension] for p in profile.points), most=4)
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
