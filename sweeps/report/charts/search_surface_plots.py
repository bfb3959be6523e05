"""Charts of search surfaces: a heat map of accuracy over two numbers, or a curve over α."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeps.console.number_format import percent
from sweeps.report.charts.search_surfaces import Searched, read
from sweeps.report.charts.vega import Spec, axis, base, embedded, hover, shown
from sweeps.results.comparison import Row

CELLS = 30
"""Most cells of a heat map along an axis; of a finer search, a cell has the best of its part."""

HEIGHT = 190


def pictures(rows: Iterable[Row], learned: Path | None) -> list[dict[str, Any]]:
    """Charts of each winner that searched a surface: method, axes, one panel for each task."""
    found = []
    for row in rows if learned else ():
        if surfaces := read(learned or Path(), row.trial_key):
            name = surfaces[0].axis
            panels = [(each.task, embedded(picture(each)), words(each)) for each in surfaces]
            found.append({"method": row.method, "axis": name, "panels": panels})
    return found


def picture(surface: Searched) -> Spec:
    """The chart of a surface."""
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


def heat_map(surface: Searched) -> Spec:
    """Accuracy over (α, β) or (α, T), in the order of the values; ring and line mark what was
    selected."""
    across, up = parts(len(surface.alphas)), parts(len(surface.values))
    values = [
        {
            "alpha": i,
            surface.axis: j,
            "accuracy": shown(float(surface.grid[rows, columns].max())),
            "at": f"{span(surface.alphas[columns])}; {span(surface.values[rows])}",
        }
        for j, rows in enumerate(up)
        for i, columns in enumerate(across)
    ]
    best = surface.best
    low, high, at = (
        place(value, surface.alphas, across) for value in (best["low"], best["high"], best["alpha"])
    )
    row = part_of(surface.row, up)
    about = f"{surface.task}: accuracy over alpha and {surface.axis}"
    first = shown(float(surface.grid[:, 0].mean()))
    ticks = [labelled(surface.alphas, across), labelled(surface.values, up)]
    return base(f"{about}: {words(surface)}", HEIGHT) | {
        "data": {"values": values},
        "encoding": {
            "x": {"field": "alpha", "type": "ordinal", "title": "α", "axis": ticks[0]},
            "y": {"field": surface.axis, "type": "ordinal", "title": surface.axis,
                  "sort": "descending", "axis": ticks[1]},
        },
        "layer": [
            {"mark": "rect", "encoding": {
                "color": {"field": "accuracy", "type": "quantitative", "title": "accuracy, %",
                          "scale": {"scheme": "blueorange", "reverse": True, "domainMid": first}},
                "tooltip": [{"field": "at", "title": f"α; {surface.axis}"}, *hover("accuracy")]}},
            {"data": {"values": [{"alpha": low, "to": high, surface.axis: row}]},
             "mark": {"type": "rule", "stroke": "chosen", "strokeWidth": 2.5},
             "encoding": {"x2": {"field": "to"}}},
            {"data": {"values": [{"alpha": at, surface.axis: row}]},
             "mark": {"type": "point", "stroke": "chosen", "size": 110, "strokeWidth": 2.5}},
        ],
    }  # fmt: skip


def parts(count: int) -> list[slice]:
    """At most `CELLS` stretches of as many values each.

    >>> parts(2), len(parts(200)), parts(61)[:2]
    ([slice(0, 1, None), slice(1, 2, None)], 29, [slice(0, 3, None), slice(3, 6, None)])
    """
    size = math.ceil(count / CELLS)
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]


def part_of(index: int, stretches: list[slice]) -> int:
    """The stretch that an index lies in."""
    return next(i for i, each in enumerate(stretches) if index < each.stop)


def place(value: float, values: NDArray[np.float64], stretches: list[slice]) -> int:
    """The stretch that is nearest to a value."""
    if math.isinf(value):
        return len(stretches) - 1
    finite = np.where(np.isfinite(values), values, np.inf)
    return part_of(int(np.abs(finite - value).argmin()), stretches)


def span(values: NDArray[np.float64]) -> str:
    """A stretch of values: one, or the first and the last.

    >>> span(np.array([0.5])), span(np.array([1.0, 2.0, 4.0]))
    ('0.5', '1 to 4')
    """
    ends = [number(float(value)) for value in values[[0, -1]]]
    return ends[0] if len(values) == 1 else f"{ends[0]} to {ends[1]}"


def labelled(values: NDArray[np.float64], stretches: list[slice], most: int = 6) -> dict[str, Any]:
    """An axis of cells with a few labels: each is the first value of its cell."""
    step = math.ceil(len(stretches) / most)
    shown_at = list(range(0, len(stretches), step))
    texts = [number(float(values[stretches[i].start])) for i in shown_at]
    pairs = [f"datum.value === {i} ? '{text}'" for i, text in zip(shown_at, texts, strict=True)]
    return {"values": shown_at, "labelAngle": 0, "labelExpr": " : ".join([*pairs, "''"])}


def alpha_curve(surface: Searched) -> Spec:
    """Accuracy against α, with a band where it is best and a ring in its middle."""
    best = surface.best
    line = [
        {"alpha": round(alpha, 6), "accuracy": shown(value)}
        for alpha, value in zip(surface.alphas.tolist(), surface.grid[0].tolist(), strict=True)
    ]
    top = shown(best["accuracy"])
    band = {"alpha": best["low"], "to": min(best["high"], float(surface.alphas[-1]))}
    about = f"{surface.task}: accuracy over alpha: {words(surface)}"
    return base(about, HEIGHT) | {
        "data": {"values": line},
        "encoding": {"x": axis("alpha", "α"), "y": axis("accuracy", "accuracy, %")},
        "layer": [
            {"data": {"values": [band]},
             "mark": {"type": "rect", "stroke": "chosen", "opacity": 0.3},
             "encoding": {"x": {"field": "alpha", "type": "quantitative"}, "x2": {"field": "to"},
                          "y": {"value": 0}, "y2": {"value": "height"}}},
            {"mark": {"type": "line"}, "encoding": {"tooltip": hover("alpha", "accuracy")}},
            {"data": {"values": [{"alpha": best["alpha"], "accuracy": top}]},
             "mark": {"type": "point", "stroke": "chosen", "size": 110, "strokeWidth": 2.5}},
        ],
    }  # fmt: skip
