"""Interactive charts as Vega-Lite specifications, plain data for the page's script.

The page holds Vega, Vega-Lite and Vega-Embed once (`sweeps/templates/vega`, 0.8 MB, unchanged
releases) and draws each specification in the reader's browser, in the page's colours. Values are
data of a specification, never expressions, and the page's policy forbids `eval`: Vega interprets
its expressions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from markupsafe import Markup

from sweeps.console.number_format import params_text, percent, value_text
from sweeps.report.charts.hyperparameter_profiles import Profile, Tried, curves
from sweeps.report.charts.learning_curves import Learned, mean, thinned
from sweeps.results.comparison import Comparison, Row
from sweeps.results.expert_matrix import ExpertMatrix

Spec: TypeAlias = dict[str, Any]

SCRIPTS = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js")
"""Files of `sweeps/templates/vega`, in the order of their dependence."""

CELLS = 25
"""Most values of a parameter on an axis of a heat map; with more, trials are points."""

POINTS = 200
"""Points of a learning curve; longer ones are drawn by the means of their stretches."""

HEIGHT = 260

STEP = 22
"""Height of a row of cells or of a bar."""

COSTS: Mapping[str, tuple[str, float]] = {
    "models": ("models held", 1.0),
    "passes": ("forward passes an input", 1.0),
    "extra_parameters": ("parameters on top of one model, millions", 1e-6),
    "input_s": ("time of an input, ms", 1e3),
    "merge_s": ("time of the merge, s", 1.0),
    "learn_s": ("learning time, s", 1.0),
}
"""Field of a row's cost -> title of the axis, and its unit's factor."""


def embedded(spec: Spec) -> Markup:
    """A specification as JSON that can be the content of a `script` element."""
    text = json.dumps(spec, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028"))


def base(label: str, height: int = HEIGHT) -> Spec:
    """Fields of every chart; `label` is its accessible name."""
    return {
        "description": label,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
    }


def by_rows(label: str) -> Spec:
    """Fields of a chart whose height grows with its rows, around which labels find their room."""
    fitted = {"type": "fit-x", "contains": "padding"}
    return base(label) | {"height": {"step": STEP}, "autosize": fitted}


def axis(field: str, title: str, *, log: bool = False) -> Spec:
    """A quantitative channel that need not begin at 0."""
    scale: Spec = {"zero": False, "nice": True, **({"type": "log"} if log else {})}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale}


def hover(*names: str) -> list[Spec]:
    """A tooltip of these fields."""
    return [{"field": name, "title": name.replace("_", " ")} for name in names]


def shown(value: float) -> float:
    """An accuracy in percent, to three digits after the point."""
    return round(100 * value, 3)


def profile(found: Profile) -> Spec:
    """Accuracy against what a method swept: curves, a heat map, or parallel coordinates."""
    if len(found.names) == 1:
        return profile_curves(found)
    if len(found.names) == 2:
        return plane(found)
    return parallel(found)


def profile_curves(found: Profile) -> Spec:
    """The mean and each task against one parameter; a click on the legend shows one alone."""
    name, lines = found.names[0], []
    tasks = found.tasks if len(found.tasks) > 1 else ()
    for which in ("mean", *tasks):
        for series, points in curves(found, which).items():
            lines += [
                {"value": at, "accuracy": shown(y), "of": which, "others": series}
                for at, y in points
            ]
    layers: list[Spec] = [
        {
            "mark": {"type": "line", "point": {"size": 40}},
            "params": [{"name": "task", "select": {"type": "point", "fields": ["of"]},
                        "bind": "legend"}],
            "encoding": {
                "y": axis("accuracy", "accuracy, %"),
                "color": {"field": "of", "type": "nominal", "title": None,
                          "sort": ["mean", *tasks]},
                "detail": {"field": "others", "type": "nominal"},
                "strokeWidth": {"condition": {"test": {"field": "of", "equal": "mean"}, "value": 3},
                                "value": 1.2},
                "opacity": {"condition": {"param": "task", "value": 1}, "value": 0.08},
                "tooltip": hover("of", "value", "accuracy", "others"),
            },
        }
    ]  # fmt: skip
    if found.chosen is not None:
        # A layer that inherits a field which its data lack is drawn empty: `y` is the lines' alone.
        at = {"value": found.chosen.at[0]}
        rule = {"type": "rule", "strokeDash": [4, 3], "stroke": "chosen"}
        layers.append({"data": {"values": [at]}, "mark": rule})
    return base(f"{found.method}: accuracy against {name}") | {
        "data": {"values": lines},
        "encoding": {"x": axis("value", name, log=found.logs[0])},
        "layer": layers,
    }


def plane(found: Profile) -> Spec:
    """A heat map over two parameters: the best trial of each cell; points if they were drawn."""
    x, y = found.names
    best: dict[tuple[float, ...], Tried] = {}
    for point in found.points:
        there = best.get(point.at)
        if there is None or point.selected or (
            point.accuracy["mean"] > there.accuracy["mean"] and not there.selected
        ):  # fmt: skip
            best[point.at] = point
    values = [
        {"x": each.at[0], "y": each.at[1], "accuracy": shown(each.accuracy["mean"]),
         "text": percent(each.accuracy["mean"]), "selected": each.selected,
         "trial": f"{each.label} {each.series}".strip()}
        for each in best.values()
    ]  # fmt: skip
    counts = [len({at[i] for at in best}) for i in (0, 1)]
    grid = max(counts) <= CELLS and counts[0] * counts[1] <= 2 * len(best)
    colour = {"field": "accuracy", "type": "quantitative", "title": "accuracy, %",
              "scale": {"scheme": "blues", "zero": False}}  # fmt: skip
    ring = {"condition": {"test": {"field": "selected", "equal": True}, "value": "chosen"},
            "value": None}  # fmt: skip
    made = base(f"{found.method}: accuracy over {x} and {y}", 280) | {"data": {"values": values}}
    told = [*hover("trial"), {"field": "text", "title": "accuracy, %"}]
    if not grid:
        return made | {
            "mark": {"type": "circle", "size": 140, "opacity": 1, "strokeWidth": 3},
            "encoding": {"x": axis("x", x, log=found.logs[0]), "y": axis("y", y, log=found.logs[1]),
                         "color": colour, "stroke": ring, "tooltip": told},
        }  # fmt: skip
    light = {"condition": {"test": {"field": "accuracy", "gte": middle_of(values)},
                           "value": "white"}, "value": "#123"}  # fmt: skip
    return made | {
        "encoding": {
            "x": {"field": "x", "type": "ordinal", "title": x, "axis": {"labelAngle": 0}},
            "y": {"field": "y", "type": "ordinal", "title": y, "sort": "descending"},
            "tooltip": told,
        },
        "layer": [
            {"mark": {"type": "rect", "strokeWidth": 4}, "encoding": {"color": colour,
                                                                      "stroke": ring}},
            *([{"mark": {"type": "text"}, "encoding": {"text": {"field": "text"}, "color": light}}]
              if len(values) <= 60 else []),
        ],
    }  # fmt: skip


def middle_of(values: Sequence[Mapping[str, Any]]) -> float:
    """Half-way between the worst and the best accuracy, above which ink is white."""
    found: list[float] = [value["accuracy"] for value in values]
    return (min(found) + max(found)) / 2


def parallel(found: Profile) -> Spec:
    """Parallel coordinates: a line a trial over its parameters and accuracy, each from its lowest
    to its highest value."""
    columns = [*short(found.names), "accuracy, %"]
    raw = [[*point.at, 100 * point.accuracy["mean"]] for point in found.points]
    logs = [*found.logs, False]
    lows, highs = (
        [pick(line[i] for line in raw) for i in range(len(columns))] for pick in (min, max)
    )
    titles = [
        f"{name}: {value_text(float(low), 3)} to {value_text(float(high), 3)}"
        for name, low, high in zip(columns, lows, highs, strict=True)
    ]
    values = []
    for i, (point, line) in enumerate(zip(found.points, raw, strict=True)):
        for title, value, low, high, log in zip(titles, line, lows, highs, logs, strict=True):
            values.append(
                {"trial": i, "of": title, "place": place(value, low, high, log),
                 "value": round(value, 6), "accuracy": shown(point.accuracy["mean"]),
                 "selected": point.selected}
            )  # fmt: skip
    selected = {"test": {"field": "selected", "equal": True}}
    return base(f"{found.method}: trials over {', '.join(found.names)}", 340) | {
        "data": {"values": values},
        "mark": {"type": "line", "point": True, "opacity": 0.8},
        "encoding": {
            "x": {"field": "of", "type": "nominal", "sort": titles, "title": None,
                  "axis": {"labelLimit": 140, "labelAngle": -60, "grid": True,
                           "labelExpr": "split(datum.label, ': ')"}},
            "y": {"field": "place", "type": "quantitative", "axis": None},
            "detail": {"field": "trial", "type": "nominal"},
            "color": {"condition": {**selected, "value": "chosen"},
                      "field": "accuracy", "type": "quantitative", "title": "accuracy, %",
                      "scale": {"scheme": "blues", "zero": False}},
            "strokeWidth": {"condition": {**selected, "value": 4}, "value": 1.2},
            "tooltip": hover("of", "value", "accuracy"),
        },
    }  # fmt: skip


def short(names: Sequence[str]) -> list[str]:
    """Names of parameters without the mapping that all of them are in.

    >>> short(["weights.a", "weights.b"]), short(["weights.a", "scale"])
    (['a', 'b'], ['weights.a', 'scale'])
    """
    heads = {name.rpartition(".")[0] for name in names}
    return [name.rpartition(".")[2] if len(heads) == 1 else name for name in names]


def place(value: float, low: float, high: float, log: bool) -> float:
    """Where a value is between the lowest (0) and the highest (1) of its column.

    >>> place(3.0, 1.0, 5.0, False), place(1e-4, 1e-5, 1e-3, True), place(2.0, 2.0, 2.0, False)
    (0.5, 0.5, 0.5)
    """
    if log:
        value, low, high = (math.log(each) for each in (value, low, high))
    return round((value - low) / (high - low), 4) if high > low else 0.5


def bars(title: str, shares: Mapping[str, float]) -> Spec:
    """Horizontal bars of shares of 1, the largest first."""
    values = [{"parameter": name, "share": round(share, 4)} for name, share in shares.items()]
    return by_rows(title) | {
        "data": {"values": values},
        "mark": "bar",
        "encoding": {
            "y": {"field": "parameter", "type": "nominal", "sort": "-x", "title": None},
            "x": {"field": "share", "type": "quantitative", "title": "share of variance"},
            "tooltip": hover("parameter", "share"),
        },
    }


def expert_scores(comparison: Comparison, found: ExpertMatrix) -> Spec | None:
    """Score of base and every expert on every task, as published tables have it; None where the
    ranking metric is not measured so."""
    name = comparison.ranked_by.name
    values = [
        {"model": model, "task": task, "score": shown(value), "text": percent(value)}
        for model, tasks in found.scores.items()
        for task in comparison.tasks
        if (value := tasks.get(task, {}).get(name)) is not None
    ]
    if not values:
        return None
    return cells(
        "every expert on every task", values, ("model", "task", "score"),
        (list(found.scores), list(comparison.tasks)), f"{comparison.ranked_by.title}, %",
    )  # fmt: skip


def two_digits(value: float) -> str:
    """A number with two digits after the point, without a negative zero.

    >>> two_digits(-0.004), two_digits(-0.1)
    ('0.00', '-0.10')
    """
    return f"{round(value, 2) + 0.0:.2f}"


def expert_cosines(found: ExpertMatrix) -> Spec | None:
    """Cosines between task vectors; the diagonal, which is 1, is left out."""
    values = [
        {"first": first, "second": second, "cosine": round(value, 4), "text": two_digits(value)}
        for first, line in found.cosines.items()
        for second, value in line.items()
        if first != second and value is not None
    ]
    if not values:
        return None
    names = list(found.cosines)
    return cells(
        "cosines of task vectors", values, ("first", "second", "cosine"), (names, names), "cosine"
    )


def cells(
    label: str,
    values: Sequence[Mapping[str, Any]],
    fields: tuple[str, str, str],
    order: tuple[Sequence[str], Sequence[str]],
    title: str,
) -> Spec:
    """A matrix of coloured cells, with their numbers if there are at most 12 columns.

    `fields`: of rows, columns and colour.
    """
    row, column, colour = fields
    numbers: list[float] = [value[colour] for value in values]
    half = (min(numbers) + max(numbers)) / 2
    ink = {"condition": {"test": {"field": colour, "gte": half}, "value": "white"}, "value": "#123"}
    written = {"mark": {"type": "text"}, "encoding": {"text": {"field": "text"}, "color": ink}}
    return by_rows(label) | {
        "padding": {"left": 5, "top": 5, "bottom": 5, "right": 45},  # for the last slanted label
        "data": {"values": list(values)},
        "encoding": {
            "y": {"field": row, "type": "nominal", "sort": list(order[0]), "title": None},
            "x": {"field": column, "type": "nominal", "sort": list(order[1]), "title": None,
                  "axis": {"labelAngle": -35, "orient": "top", "labelLimit": 110}},
            "tooltip": hover(row, column, colour),
        },
        "layer": [
            {"mark": "rect", "encoding": {"color": {
                "field": colour, "type": "quantitative", "title": title,
                "scale": {"scheme": "blues", "zero": False}}}},
            *([written] if len(order[1]) <= 12 else []),
        ],
    }  # fmt: skip


def learning(curves: Sequence[Learned]) -> Spec:
    """Loss against step for the trials of a method; the selected one on top."""
    values = []
    for i, curve in enumerate(curves):
        about = params_text(curve.entry.params)
        ends = ", stopped early" if curve.stopped else ""
        told = f"{about}: {curve.steps} steps{ends}"
        values += [
            {"trial": i, "step": step, "loss": round(loss, 6), "selected": curve.selected,
             "of": told}
            for step, loss in thinned(curve.points("loss"), POINTS)
        ]  # fmt: skip
    chosen = {"test": {"field": "selected", "equal": True}}
    return base(f"{curves[-1].entry.method}: loss against step") | {
        "data": {"values": values},
        "mark": {"type": "line", "point": {"size": 18}},
        "encoding": {
            "x": axis("step", "step"),
            "y": axis("loss", "loss"),
            "detail": {"field": "trial", "type": "nominal"},
            "color": {"condition": {**chosen, "value": "best"}, "value": "other"},
            "strokeWidth": {"condition": {**chosen, "value": 3}, "value": 1.2},
            "tooltip": hover("of", "step", "loss"),
        },
    }


def coding(curve: Learned) -> Spec:
    """Smallest, mean and largest coefficient of a trial against step."""
    values = [
        {"step": step, "coefficient": round(value, 6), "of": name}
        for name, reduce in (("max", max), ("mean", mean), ("min", min))
        for step, value in thinned(curve.points(f"coding/{name}"), POINTS, reduce)
    ]
    return base(f"{curve.entry.method}: coefficients against step", 170) | {
        "data": {"values": values},
        "mark": {"type": "line", "point": {"size": 18}},
        "encoding": {
            "x": axis("step", "step"),
            "y": axis("coefficient", "coefficient"),
            "color": {"field": "of", "type": "nominal", "title": None,
                      "sort": ["max", "mean", "min"]},
            "tooltip": hover("of", "step", "coefficient"),
        },
    }  # fmt: skip


def cost(comparison: Comparison) -> Spec | None:
    """Score against cost, with a choice of the cost; the line joins rows that no other row beats
    in both (the Pareto front). None if no row has a cost."""
    rows = [row for row in comparison.ranked if comparison.score(row) is not None]
    known = {
        name: about
        for name, about in COSTS.items()
        if any(row.cost.get(name) is not None for row in rows)
    }
    if not known.keys() & {"models", "input_s"}:
        return None
    values = [point_of(comparison, row, known) for row in rows]
    up = comparison.ranked_by.larger_is_better
    pick = {
        "name": "field", "value": next(iter(known)),
        "bind": {"input": "select", "name": "cost ", "options": list(known),
                 "labels": [title for title, _ in known.values()]},
    }  # fmt: skip
    scored = {"field": "score", "type": "quantitative", "scale": {"zero": False},
              "title": f"{comparison.ranked_by.title}, %"}  # fmt: skip
    across = {"field": "cost", "type": "quantitative", "scale": {"zero": False, "padding": 20},
              "title": None, "axis": {"format": ".6~g", "tickCount": 8}}  # fmt: skip
    front = [
        {"window": [{"op": "max" if up else "min", "field": "score", "as": "so_far"}],
         "sort": [{"field": "cost"}, {"field": "score", "order": "descending" if up else
                                      "ascending"}]},
        {"filter": "datum.so_far === datum.score"},
    ]  # fmt: skip
    return base(f"{comparison.ranked_by.title} against cost", 330) | {
        "params": [pick],
        "data": {"values": values},
        "transform": [{"calculate": "datum[field]", "as": "cost"},
                      {"filter": "isValid(datum.cost)"}],
        "encoding": {"x": across, "y": scored},
        "layer": [
            {"transform": front, "mark": {"type": "line", "interpolate": "step-after",
                                          "stroke": "other", "strokeDash": [4, 3]}},
            {"mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
             "encoding": {
                 "color": {"field": "what", "type": "nominal", "title": None,
                           "scale": {"domain": ["winner", "method", "reference"],
                                     "range": ["best", "ink", "other"]}},
                 "tooltip": [*hover("row", "score"), {"field": "cost", "title": "cost"},
                             *hover("what")]}},
            names("left", 8, "datum.along <= 0.6"),
            names("right", -8, "datum.along > 0.6"),
        ],
    }  # fmt: skip


def names(align: str, dx: int, where: str) -> Spec:
    """Names of rows beside their points in the plot of costs, on the side that has room.

    `where`: the points, by `datum.along`, their place from 0 (left) to 1 (right). Of points whose
    names would overlap only the best has its name; the others have it on hover.
    """
    extent = [{"op": op, "field": field, "as": f"{op}_{field}"}
              for op in ("min", "max") for field in ("cost", "score")]  # fmt: skip
    width = "(datum.max_cost - datum.min_cost || 1)"
    return {
        "transform": [
            {"joinaggregate": extent},
            {"calculate": f"(datum.cost - datum.min_cost) / {width}", "as": "along"},
            {"calculate": "floor(6 * datum.along)", "as": "column"},
            {
                "window": [{"op": "lag", "field": "score", "as": "above"}],
                "sort": [{"field": "score", "order": "descending"}],
                "groupby": ["column"],
            },
            {"filter": f"({where}) && (!isValid(datum.above) || "
                       "datum.above - datum.score > (datum.max_score - datum.min_score) / 16)"},
        ],
        # Above the points: the dashed line goes through them.
        "mark": {"type": "text", "align": align, "dx": dx, "dy": -8, "limit": 150},
        "encoding": {"text": {"field": "row"}},
    }  # fmt: skip


def point_of(
    comparison: Comparison, row: Row, known: Mapping[str, tuple[str, float]]
) -> dict[str, Any]:
    """A row as a datum of the plot of costs."""
    values = {
        name: None if (value := row.cost.get(name)) is None else round(value * factor, 6)
        for name, (_, factor) in known.items()
    }
    what = "winner" if row is comparison.best else "reference" if row.reference else "method"
    return {"row": row.method, "score": shown(comparison.score(row) or 0.0), "what": what} | values
