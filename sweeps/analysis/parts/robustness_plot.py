"""Plot accuracy under shift against accuracy on the reference, both as logits, as WiSE-FT does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from fusion.analysis.robustness import EPSILON, logit, logit_axis_limits, logit_of, logit_ticks
from sweeps.analysis.core.figure import NAME, Picture, Tables, canvas
from sweeps.analysis.core.finding import Line
from sweeps.analysis.parts.robustness_text import LINEAR, MEAN, PATH, SINGLE
from sweeps.console.number_format import middle, percent
from sweeps.report.charts.static_figures import BEST, OTHER, REFERENCE

ABREAST = 3
"""Panels in a row."""

APART = 0.045
"""Least distance of two labelled α, as a fraction of the picture."""

COLOURS = {PATH: BEST, LINEAR: OTHER}


def drawn_robustness(tables: Tables) -> list[Picture]:
    """Plot of the mean over shift sets, and one panel for each set if there are several."""
    main = tables["points"][-1]["task"]
    points = [line for line in tables["points"] if line["task"] == main]
    lines = {line["set"]: line for line in tables["baselines"] if line["task"] == main}
    sets = [name for name in dict.fromkeys(line["set"] for line in points) if name != MEAN]
    figure, axes = canvas(7.5, 6.0)
    rows = [line for line in points if line["set"] == MEAN]
    scatter(axes, rows, lines[MEAN])
    labelled(axes, rows)
    what = f"mean of {len(sets)} shift sets" if len(sets) > 1 else sets[0]
    axes.set_xlabel("accuracy on the reference, %")
    axes.set_ylabel(f"accuracy under shift, %: {what}")
    axes.legend(fontsize=8)
    title = "Accuracy on the reference against accuracy under shift, axes in logits"
    found = [Picture("robustness", title + clipped(rows), figure)]
    if len(sets) > 1:
        panels = panelled(points, lines, sets)
        title = "The same, shift set by shift set" + clipped(points)
        found.append(Picture("robustness-sets", title, panels))
    return found


def panelled(points: Sequence[Line], lines: Any, sets: Sequence[str]) -> Figure:
    """One panel for each shift set."""
    wide = 2 if len(sets) == 4 else min(ABREAST, len(sets))
    high = -(-len(sets) // wide)
    figure = Figure(figsize=(0.6 + 3.0 * wide, 0.5 + 2.7 * high), layout="constrained")
    for at, name in enumerate(sets):
        axes = figure.add_subplot(high, wide, at + 1)
        scatter(axes, [line for line in points if line["set"] == name], lines[name], small=True)
        axes.set_title(middle(name, 2 * NAME), fontsize=9)
        axes.tick_params(labelsize=7)
    figure.supxlabel("accuracy on the reference, %", fontsize=9)
    figure.supylabel("accuracy under shift, %", fontsize=9)
    return figure


def scatter(axes: Axes, rows: Sequence[Line], baseline: Line, *, small: bool = False) -> None:
    """All classifiers, the baseline and y = x, on logit axes."""
    size = 0.6 if small else 1.0
    dress(axes, rows, gap=0.12 if small else 0.05)
    axes.axline((0, 0), slope=1, color=REFERENCE, linestyle=":", linewidth=1,
                label="as accurate under shift")  # fmt: skip
    if baseline["slope"] is not None:
        axes.axline(
            (0, baseline["intercept"]), slope=baseline["slope"], color="black", linestyle="--",
            linewidth=1, label=f"baseline of {baseline['models']} models",
        )  # fmt: skip
    singles = [line for line in rows if line["curve"] == SINGLE]
    if singles:
        axes.plot(*placed(singles), "o", color=REFERENCE, ms=5 * size, alpha=0.7,
                  label=f"{len(singles)} models")  # fmt: skip
    for curve, colour in COLOURS.items():
        walk = [line for line in rows if line["curve"] == curve]
        if not walk:
            continue
        xs, ys = placed(walk)
        axes.plot(xs, ys, "o-", color=colour, ms=3.5 * size, linewidth=1.4 * size,
                  label=f"WiSE-FT, {curve}")  # fmt: skip
        axes.plot(xs[-1:], ys[-1:], "D", color=colour, ms=8 * size, markeredgecolor="black",
                  label=f"{middle(walk[-1]['model'], NAME)} (α = 1)", zorder=4)  # fmt: skip
    first = [line for line in rows if line["curve"] == PATH][:1]
    axes.plot(*placed(first), "*", color="white", markeredgecolor="black", ms=15 * size,
              label="base (α = 0)", zorder=5)  # fmt: skip


def dress(axes: Axes, rows: Sequence[Line], *, gap: float) -> None:
    """Set limits and round ticks of both axes."""
    for key, limit, ticks in (
        ("reference", axes.set_xlim, axes.set_xticks), ("shift", axes.set_ylim, axes.set_yticks),
    ):  # fmt: skip
        low, high = logit_axis_limits([line[key] for line in rows])
        limit(logit_of(low), logit_of(high))
        at = logit_ticks(low, high, gap=gap)
        ticks([logit_of(tick) for tick in at], [f"{100 * tick:g}" for tick in at])
    axes.grid(alpha=0.3)


def placed(rows: Sequence[Line]) -> tuple[list[float], list[float]]:
    """Coordinates of classifiers: logits of both accuracies."""
    xs, ys = (logit([line[key] for line in rows]).tolist() for key in ("reference", "shift"))
    return xs, ys


def labelled(axes: Axes, rows: Sequence[Line]) -> None:
    """Label inner points of the paths with α, if they are far enough apart."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    walks = {curve: [line for line in rows if line["curve"] == curve] for curve in COLOURS}
    ends = [line for walk in walks.values() for line in walk if line["alpha"] in (0.0, 1.0)]
    inner = [line for walk in walks.values() for line in walk if 0 < line["alpha"] < 1]
    taken: list[tuple[float, float]] = []
    for line, x, y in zip([*ends, *inner], *placed([*ends, *inner]), strict=True):
        spot = (x - left) / (right - left), (y - low) / (high - low)
        far = all(math.dist(spot, other) >= APART for other in taken)
        if far and 0 < line["alpha"] < 1:
            first = line["curve"] == PATH
            axes.annotate(
                f"{line['alpha']:.2g}", (x, y), (5, 5) if first else (5, -11),
                textcoords="offset points", fontsize=7, color=COLOURS[line["curve"]], zorder=6,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )  # fmt: skip
        if far:
            taken.append(spot)


def clipped(rows: Sequence[Line]) -> str:
    """Note for the title about accuracies outside the logit's range."""
    every = [line[key] for line in rows for key in ("reference", "shift")]
    if all(EPSILON <= accuracy <= 1 - EPSILON for accuracy in every):
        return ""
    low, high = percent(EPSILON), percent(1 - EPSILON)
    return f"; accuracies below {low} % and above {high} % are drawn there"
