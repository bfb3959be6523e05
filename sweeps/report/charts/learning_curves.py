"""Learning curves: loss and coding against the step, one figure for each method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fusion.errors import InputError
from fusion.methods.learned.steps import Shape
from fusion.parameters import bind
from fusion.registry import METHODS, Adaptive, Resident
from sweeps.console.number_format import count, middle, params_text, value_text
from sweeps.report.charts.axes import Axis, frame, pct, polyline, px, spread, svg, tag
from sweeps.report.charts.comparison import LABEL, LINE
from sweeps.results.ledger import Entry

NAMED = 8
"""More trials than this are not labelled one by one."""

SEGMENTS = 3000
"""Line segments of a chart, about: longer curves are drawn by the means of their stretches."""

Points = list[tuple[float, float]]
Reduce = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Learned:
    """The learning curve of one trial."""

    entry: Entry
    asked: int
    """Steps that it was to take."""
    selected: bool

    @property
    def stopped(self) -> bool:
        """Whether it was stopped before its last step."""
        return self.entry.steps < self.asked

    @property
    def steps(self) -> str:
        """`20 of 60`; `60` if it took all."""
        return f"{self.entry.steps} of {self.asked}" if self.stopped else f"{self.entry.steps}"

    def points(self, name: str) -> Points:
        """(step, value) of its checkpoints, finite values only."""
        found = ((point["step"], point.get(name, math.nan)) for point in self.entry.curve)
        return [(step, value) for step, value in found if math.isfinite(value)]


def asked_steps(entry: Entry) -> int:
    """The steps that a trial was configured with, including defaults; if unknown, those that it
    took.

    >>> asked_steps(Entry("k", "adamerging", "adaptive", {}, "done", "select", steps=20))
    1000
    """
    row = METHODS.get(entry.method)
    params = entry.params
    if isinstance(row, Adaptive):
        with suppress(InputError):  # of another version of the method
            params = bind(entry.method, row.parameters, params)
    if isinstance(row, Resident):
        with suppress(InputError):
            return row.plan(Shape((), ()), **params).steps
    return int(params.get("steps", entry.steps))


def steps_text(entry: Entry) -> str:
    """`20 of 60`; empty for a trial that learned nothing."""
    return Learned(entry, asked_steps(entry), False).steps if entry.steps else ""


def learned(entries: Iterable[Entry], selected: Mapping[str, str | None]) -> list[list[Learned]]:
    """Trials with a curve, by method; the selected one is last, to be drawn on top.

    Args:
        entries: the ledger, in the order of the report.
        selected: method -> key of its selected trial.
    """
    methods: dict[str, list[Learned]] = {}
    for entry in entries:
        chosen = selected.get(entry.method) == entry.trial_key
        curve = Learned(entry, asked_steps(entry), chosen)
        if curve.points("loss"):
            methods.setdefault(entry.method, []).append(curve)
    return [sorted(found, key=lambda each: each.selected) for found in methods.values()]


def figures(entries: Iterable[Entry], selected: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """Figures of the report's section on learning, one for each method."""
    return [figure(curves) for curves in learned(entries, selected)]


def figure(curves: Sequence[Learned]) -> dict[str, Any]:
    """The charts of one method, with their descriptions."""
    last = curves[-1]
    names = labels(curves)
    stopped = sum(curve.stopped for curve in curves)
    caption = count(len(curves), "trial") + (f", {stopped} stopped early" if stopped else "")
    varying = varied(curves)
    chosen = chosen_text(last, varying) if last.selected else ""
    caption += f"; {chosen}" if chosen else ""
    return {
        "method": last.entry.method,
        "chosen": chosen,
        "stopped": stopped,
        "labelled": varying[0] if names and len(varying) == 1 else "",
        "loss": loss_chart(curves, names, f"{last.entry.method}: loss against step; {caption}"),
        "coding": coding_chart(last) if last.selected and last.points("coding/mean") else None,
    }


def chosen_text(curve: Learned, varying: Sequence[str]) -> str:
    """The selected trial: its steps and how its loss changed, in words."""
    losses = [loss for _, loss in curve.points("loss")]
    params = {name: curve.entry.params[name] for name in varying if name in curve.entry.params}
    where = f"{params_text(params)}, " if params else ""
    return (
        f"selected: {where}{curve.steps} steps; "
        f"loss {losses[0]:.3g} at first, {losses[-1]:.3g} at last"
    )


def varied(curves: Sequence[Learned]) -> list[str]:
    """The parameters in which the trials differ."""
    names = dict.fromkeys(name for curve in curves for name in curve.entry.params)
    return [name for name in names if len({repr(c.entry.params.get(name)) for c in curves}) > 1]


def labels(curves: Sequence[Learned]) -> list[str]:
    """Label of each trial: the value of the one parameter that varies; none if there are many."""
    varying = varied(curves)
    if len(varying) != 1 or len(curves) > NAMED:
        return []
    return [value_text(curve.entry.params.get(varying[0]), 3) for curve in curves]


def loss_chart(curves: Sequence[Learned], names: Sequence[str], label: str) -> Markup:
    """Loss against step for all trials: the selected one on top, stopped ones end in a cross."""
    height = 230.0
    most = max(20, min(150, SEGMENTS // len(curves)))
    lines = [thinned(curve.points("loss"), most) for curve in curves]
    x = Axis(0.0, max(line[-1][0] for line in lines))
    y = Axis.around(value for line in lines for _, value in line)
    parts = frame(x, y, height, x.ticks(), y.ticks(), percent_y=False)
    ends = []
    for curve, line in zip(curves, lines, strict=True):
        style = "mean" if curve.selected else "task"
        parts += polyline(line, x, y, height, style)
        at = (pct(x.at(line[-1][0])), px(height * (1 - y.at(line[-1][1]))))
        parts += end(curve, at, line[-1][1])
        ends.append((style, line[-1][0], height * (1 - y.at(line[-1][1]))))
    if names:
        parts += beside(names, ends, x, height)
    return svg(parts, height, label, "chart")


def end(curve: Learned, at: tuple[str, str], loss: float) -> list[Markup]:
    """Marker at the end of a trial: a dot, a cross if it was stopped, a ring if it was selected."""
    style = "mean" if curve.selected else "task"
    said = f"{params_text(curve.entry.params)}: {curve.steps} steps, loss {loss:.4g}"
    title = tag("<title>{}</title>", said + (", stopped early" if curve.stopped else ""))
    if curve.stopped:
        cross = '<text class="cross {}" x="{}" y="{}" dy="6" text-anchor="middle">×{}</text>'
        parts = [tag(cross, style, *at, title)]
    else:
        dot = '<circle class="{}" cx="{}" cy="{}" r="3.5">{}</circle>'
        parts = [tag(dot, style, *at, title)]
    if curve.selected:
        parts.append(tag('<circle class="chosen" cx="{}" cy="{}" r="7"/>', *at))
    return parts


def beside(
    names: Sequence[str], ends: Sequence[tuple[str, float, float]], x: Axis, height: float
) -> list[Markup]:
    """Labels of the curves in the right margin, or where a stopped curve ends."""
    parts = []
    full = [i for i, (_, step, _) in enumerate(ends) if step == x.high]
    places = dict(zip(full, spread([ends[i][2] for i in full], LINE, height), strict=True))
    for i, (name, (style, step, place)) in enumerate(zip(names, ends, strict=True)):
        written = '<text class="beside {}" x="{}" dx="11" y="{}" dy="4">{}</text>'
        y = places.get(i, place)
        parts.append(tag(written, style, pct(x.at(step)), px(y), middle(name, LABEL)))
    return parts


def coding_chart(curve: Learned) -> Markup:
    """Smallest, mean and largest coefficient of the selected trial against step."""
    height = 150.0
    lines = {
        name: thinned(curve.points(f"coding/{name}"), 150, reduce)
        for name, reduce in (("max", max), ("mean", mean), ("min", min))
    }
    lines = {name: line for name, line in lines.items() if line}
    x = Axis(0.0, max(line[-1][0] for line in lines.values()))
    y = Axis.around(value for line in lines.values() for _, value in line)
    parts = frame(x, y, height, x.ticks(), y.ticks(5), percent_y=False)
    for name, line in lines.items():
        parts += polyline(line, x, y, height, "mean" if name == "mean" else "task")
        if len(line) == 1:
            spot = '<circle class="task" cx="{}" cy="{}" r="3.5"/>'
            parts.append(tag(spot, pct(x.at(line[0][0])), px(height * (1 - y.at(line[0][1])))))
    places = spread([height * (1 - y.at(line[-1][1])) for line in lines.values()], LINE, height)
    for (name, line), place in zip(lines.items(), places, strict=True):
        style, said = "mean" if name == "mean" else "task", f"{name} {line[-1][1]:.3g}"
        written = '<text class="{}" x="100%" dx="11" y="{}" dy="4">{}</text>'
        parts.append(tag(written, style, px(place), said))
    ends = ", ".join(f"{name} {line[-1][1]:.3g}" for name, line in lines.items())
    label = f"{curve.entry.method}: coefficients of the selected trial against step; last: {ends}"
    return svg(parts, height, label, "chart")


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return math.fsum(values) / len(values)


def thinned(points: Points, most: int, reduce: Reduce = mean) -> Points:
    """At most `most` points: each is the last step of a range, with its values reduced to one.

    >>> thinned([(5, 4.0), (10, 2.0), (15, 1.0)], 2)
    [(10, 3.0), (15, 1.0)]
    """
    size = math.ceil(len(points) / most)
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    return [(each[-1][0], reduce([value for _, value in each])) for each in stretches]
