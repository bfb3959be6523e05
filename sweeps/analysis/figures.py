"""Draw the figures of an analysis from the tables of its findings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sweeps.analysis.core.figure import NAME, Picture, Tables, canvas, value
from sweeps.analysis.core.finding import Finding, Line
from sweeps.analysis.parts.robustness_plot import drawn_robustness
from sweeps.console.number_format import middle
from sweeps.report.charts.static_figures import BEST, OTHER, REFERENCE

PRINTED = 16
"""Rows of a heat map up to which its cells have their numbers in them."""

LEVELS = 12
"""Contour lines of a landscape."""


def pictures(finding: Finding) -> list[Picture]:
    """All figures of a finding; none of a part that was skipped."""
    draw = DRAWN.get(finding.part)
    return draw(finding.tables) if draw and finding.tables else []


def drawn_gram(tables: Tables) -> list[Picture]:
    """Angles of all pairs as a heat map, and norms by block."""
    names = [line["expert"] for line in tables["experts"]]
    if len(names) < 2:
        return []
    cells = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(cells, 0.0)
    for line in tables["angles"]:
        i, j = names.index(line["first"]), names.index(line["second"])
        cells[i, j] = cells[j, i] = value(line["angle"])
    figure = heat_map(cells, names, names, "{:.0f}", "viridis", label="angle, degrees")
    found = [Picture("gram", "Angles between task vectors, degrees", figure)]
    if "cosines" in tables:  # an analysis of before has none
        cosines = np.array([[value(line[name]) for name in names] for line in tables["cosines"]])
        apart = cosines[~np.eye(len(names), dtype=bool)]
        if np.isfinite(apart).any():
            limits = (float(np.nanmin(apart)), float(np.nanmax(apart)))
            figure = heat_map(
                cosines, names, names, "{:.2f}", "viridis", label="cosine", limits=limits
            )
            title = "Cosine similarity of task vectors (colours: of different ones)"
            found.append(Picture("gram-cosines", title, figure))
    blocks = list(dict.fromkeys(line["block"] for line in tables["norms"]))
    if len(blocks) > 1:
        figure, axes = canvas(7.5, 3.8)
        mean = [
            np.mean([a for line in tables["blocks"] if line["block"] == block
                     and not math.isnan(a := value(line["angle"]))] or [math.nan])
            for block in blocks
        ]  # fmt: skip
        axes.plot(range(len(blocks)), mean, "o-", color=OTHER)
        short = [middle(block.removeprefix("encoder."), 14) for block in blocks]
        axes.set_xticks(range(len(blocks)), short, rotation=40, ha="right")
        axes.set_ylabel("mean angle, degrees")
        axes.grid(alpha=0.3)
        found.append(Picture("gram-blocks", "Mean angle of pairs, block by block", figure))
    return found


def drawn_plane(tables: Tables) -> list[Picture]:
    """Loss and error over the plane, with the three models marked."""
    xs = sorted({float(line["x"]) for line in tables["points"]})
    ys = sorted({float(line["y"]) for line in tables["points"]})
    found = []
    for what, scale, unit in (("loss", 1.0, ", nats"), ("error", 100.0, ", %")):
        cells = np.full((len(ys), len(xs)), np.nan)
        for line in tables["points"]:
            cells[ys.index(line["y"]), xs.index(line["x"])] = scale * value(line[what])
        if not np.isfinite(cells).any():
            continue
        figure, axes = canvas(7.0, 5.4)
        # Far outside the loss runs away; what is near the models is what is to be seen.
        nodes = [scale * value(line[what]) for line in tables["marks"]]
        low = float(np.nanmin(cells))
        high = max([*(s for s in nodes if math.isfinite(s)), float(np.nanpercentile(cells, 90))])
        high = max(high, low + 1e-9)
        norm = Normalize(low, high)
        mesh = axes.pcolormesh(xs, ys, cells, cmap="viridis_r", norm=norm, shading="nearest")
        if np.isfinite(cells).all() and np.ptp(cells) > 0:
            levels = np.linspace(low, high, LEVELS)
            axes.contour(xs, ys, cells, levels=levels, colors="white", linewidths=0.7, alpha=0.8)
        figure.colorbar(
            mesh, label=what + unit, extend="max" if np.nanmax(cells) > high else "neither"
        )
        marked(axes, tables["marks"], (scale, what))
        axes.set_aspect("equal", adjustable="box")
        axes.set_xlabel("distance along u₁")
        axes.set_ylabel("distance along u₂")
        title = f"{what.capitalize()} over the plane of three models"
        found.append(Picture(f"plane-{what}", title, figure))
    return found


def marked(axes: Axes, marks: Sequence[Line], shown: tuple[float, str]) -> None:
    """Mark the models on the plane, with names and values."""
    scale, what = shown
    middle_x = np.mean([line["x"] for line in marks])
    for line, shape in zip(marks, "*DsoPX", strict=False):
        axes.plot(line["x"], line["y"], shape, color="white", markeredgecolor="black", ms=9)
        left = line["x"] <= middle_x
        text = f"{middle(line['model'], NAME)}  {scale * value(line[what]):.3g}"
        box = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.8}
        axes.annotate(
            text, (line["x"], line["y"]), (8 if left else -8, 8), textcoords="offset points",
            ha="left" if left else "right", fontsize=8, bbox=box,
        )  # fmt: skip


def drawn_angles(tables: Tables) -> list[Picture]:
    """Gain of averaging against angle: over the mean, and over the better model."""
    figure, axes = canvas(7.5, 4.4)
    at = [value(line["angle"]) for line in tables["pairs"]]
    for key, shape, colour, text in (
        ("over_mean", "o", OTHER, "over the mean of the two"),
        ("over_best", "D", BEST, "over the better of the two"),
    ):
        gains = [100 * value(line[key]) for line in tables["pairs"]]
        axes.plot(at, gains, shape, color=colour, ms=5, alpha=0.75, label=text)
    axes.axhline(0, color=REFERENCE, linewidth=1)
    axes.set_xlabel("angle between task vectors, degrees")
    axes.set_ylabel("gain of the average, points of accuracy")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return [Picture("angles", "Angle against advantage of averaging", figure)]


def drawn_barriers(tables: Tables) -> list[Picture]:
    """Loss above the straight line between two models, one curve for each pair."""
    figure, axes = canvas(7.5, 4.4)

    def pair(line: Line) -> tuple[str, str]:
        return line["first"], line["second"]

    curves = [(names, list(lines)) for names, lines in groupby(tables["path"], key=pair)]
    few = len(curves) <= 10
    for (first, second), lines in curves:
        axes.plot(
            [line["alpha"] for line in lines],
            [value(line["excess"]) for line in lines],
            "o-" if few else "-",
            color=None if few else OTHER,
            alpha=1.0 if few else 0.5,
            ms=3.5,
            label=f"{middle(first, NAME)} → {middle(second, NAME)}" if few else None,
        )
    axes.axhline(0, color=REFERENCE, linewidth=1)
    axes.set_xlabel("α")
    axes.set_ylabel("loss above the line between the ends, nats")
    if few:
        axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    return [Picture("barriers", "Loss between two models, above the line of its ends", figure)]


def drawn_grid(tables: Tables) -> list[Picture]:
    """Heat map of gains for each chain."""
    found = []
    for number, lines in groupby(tables["gains"], key=lambda line: line["chain"]):
        rows = list(lines)
        values = sorted({float(line["first_value"]) for line in rows})
        cells = np.full((len(values), len(values)), np.nan)
        for line in rows:
            i, j = values.index(line["first_value"]), values.index(line["second_value"])
            cells[i, j] = cells[j, i] = 100 * value(line["gain"])
        names = [f"{each:g}" for each in values]
        reach = max(float(np.nanmax(np.abs(cells))), 1e-9)
        figure = heat_map(
            cells, names, names, "{:+.1f}", "RdBu", label="gain, points", limits=(-reach, reach)
        )
        what = rows[0]["hyperparameter"]
        fixed = f" ({rows[0]['fixed']})" if rows[0]["fixed"] else ""
        found.append(Picture(f"grid-{number}", f"Gain of averaging over {what}{fixed}", figure))
    return found


def drawn_gap(tables: Tables) -> list[Picture]:
    """Approximated against measured gap."""
    if not tables["pairs"]:
        return []
    figure, axes = canvas(6.0, 4.8)
    for temperature, shape, colour, text in (
        ("calibrated", "o", BEST, "β calibrated"), ("one", "D", REFERENCE, "β = 1"),
    ):  # fmt: skip
        lines = [line for line in tables["pairs"] if line["temperature"] == temperature]
        axes.errorbar(
            [value(line["gap"]) for line in lines],
            [value(line["approximation"]) for line in lines],
            xerr=[value(line["gap_error"]) for line in lines],
            yerr=[value(line["approximation_error"]) for line in lines],
            fmt=shape, color=colour, ms=5, capsize=2, label=text,
        )  # fmt: skip
    axes.axline((0, 0), slope=1, color=REFERENCE, linewidth=1)
    axes.set_xlabel("loss of soup minus loss of ensemble, measured")
    axes.set_ylabel("approximated")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return [Picture("gap", "Soup against ensemble: measured and approximated", figure)]


DRAWN: Mapping[str, Callable[[Tables], list[Picture]]] = {
    "gram": drawn_gram,
    "plane": drawn_plane,
    "angles": drawn_angles,
    "barriers": drawn_barriers,
    "grid": drawn_grid,
    "gap": drawn_gap,
    "robustness": drawn_robustness,
}


def heat_map(
    cells: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    text: str,
    colours: str,
    *,
    label: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A matrix as colours; its numbers are in the cells if there are few."""
    side = min(9.5, 2.2 + 0.42 * len(rows))
    figure, axes = canvas(side + 1.4, side)
    low, high = limits or (float(np.nanmin(cells)), float(np.nanmax(cells)))
    image = axes.imshow(cells, cmap=colours, vmin=low, vmax=high)
    if len(rows) <= PRINTED:
        for (y, x), cell in np.ndenumerate(cells):
            red, green, blue, _ = image.to_rgba(np.asarray(cell))
            ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
            shown = "–" if math.isnan(cell) else text.format(cell)
            axes.text(x, y, shown, ha="center", va="center", fontsize=7, color=ink)
    small = 8 if len(rows) <= PRINTED else 6
    short = [middle(name, NAME) for name in columns]
    axes.set_xticks(range(len(columns)), short, rotation=45, ha="right", fontsize=small)
    axes.set_yticks(range(len(rows)), [middle(name, NAME) for name in rows], fontsize=small)
    figure.colorbar(image, label=label, shrink=0.8)
    return figure
