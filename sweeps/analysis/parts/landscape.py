"""Analysis of the loss landscape: over the plane through three models, and along lines of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from actors.artifacts.recipe import BASE
from fusion.analysis import landscape, robustness
from fusion.errors import InputError
from sweeps.analysis.core.evaluated_points import mixture
from sweeps.analysis.core.finding import Finding, Line
from sweeps.analysis.core.inputs import BEST, SECOND, AnalysisInputs, AnalysisOptions, skipped
from sweeps.console.number_format import percent


def chosen_plane(inputs: AnalysisInputs, options: AnalysisOptions) -> landscape.Plane | None:
    """The plane that the options name; by default through the base, the best expert, and the next
    best expert that is not on a line with them. None if every two experts are on one line with
    the base.

    Raises:
        InputError: the models that the options name span no plane.
    """
    if options.plane is not None:
        # The base is the origin wherever it is named.
        three = sorted(
            (named(inputs, name) for name in options.plane), key=lambda name: name != BASE
        )
        if len(set(three)) < 3:
            raise InputError(f"--plane: {','.join(options.plane)}: three different models needed")
        origin, first, second = three
        return landscape.plane(inputs.gram, first, second, None if origin == BASE else origin)
    for first, second in combinations(inputs.ranked, 2):
        try:
            return landscape.plane(inputs.gram, first, second)
        except InputError:
            continue
    return None


def named(inputs: AnalysisInputs, name: str) -> str:
    """The expert for a name, or for one of the words `best` and `second`.

    Raises:
        InputError: there are not as many experts with a score.
    """
    places = {BEST: 0, SECOND: 1}
    if name in inputs.gram.tasks or name not in places:
        return name
    if places[name] >= len(inputs.ranked):
        raise InputError(f"--plane: {name!r}: {len(inputs.ranked)} experts have a finite score")
    return inputs.ranked[places[name]]


def plane(inputs: AnalysisInputs, options: AnalysisOptions) -> Finding:
    """Loss and error over the plane through three models."""
    where = chosen_plane(inputs, options)
    if where is None:
        return skipped(inputs, "plane", "no two experts that are not on one line with the base")
    xs, ys = landscape.grid(where, options.size, options.margin)
    nodes = [(x, y) for y in ys for x in xs]
    marks = list(where.marks.items())
    names = [BASE if name == "base" else name for name, _ in marks]
    codings = [where.to_coding(x, y).flatten() for x, y in nodes]
    # A mark is its model to the bit, not the end of a rounded walk to it.
    exact = [inputs.probe.of({} if name == BASE else {name: 1.0}) for name in names]
    found = inputs.probe([*codings, *exact], "plane")
    table = [
        {
            "x": x, "y": y, "loss": metrics["nll/mean"], "error": 1 - metrics["acc/mean"],
            **metrics,
            **{f"coefficient/{n}": c for n, c in zip(where.tasks, coding.tolist(), strict=True)
               if n in names},
        }
        for (x, y), coding, metrics in zip(nodes, codings, found, strict=False)
    ]  # fmt: skip
    shown = [
        {"model": name, "x": x, "y": y, "loss": metrics["nll/mean"],
         "error": 1 - metrics["acc/mean"]}
        for name, (_, (x, y)), metrics in zip(names, marks, found[len(nodes) :], strict=True)
    ]  # fmt: skip
    about = (
        f"The plane through {', '.join(names)}: {len(xs)} × {len(ys)} points, each a model that is"
        " merged, measured and never written; distances are in weights' L2 norm."
        f" {inputs.seen}"
    )
    lines = plane_lines(table, shown, names)
    return Finding("plane", inputs.context, about, lines, {"points": table, "marks": shown},
                   ("marks",))  # fmt: skip


def plane_lines(table: Sequence[Line], marks: Sequence[Line], names: Sequence[str]) -> list[str]:
    """Sentences: where the plane is lowest, compared with its three models."""
    lines = []
    for what in ("loss", "error"):
        finite = [line for line in table if math.isfinite(line[what])]
        models = [line for line in marks if math.isfinite(line[what])]
        if not finite or not models:
            lines.append(f"No finite {what} on the plane.")
            continue
        low, best = (min(each, key=lambda line: float(line[what])) for each in (finite, models))
        place = ", ".join(
            f"{low[f'coefficient/{name}']:.2f} of {name}" for name in names
            if f"coefficient/{name}" in low
        )  # fmt: skip
        text = percent if what == "error" else "{:.4f}".format
        unit = " %" if what == "error" else ""
        lines.append(
            f"The lowest {what} on the grid is {text(low[what])}{unit} (at {place});"
            f" the best of the three models, {best['model']}, has {text(best[what])}{unit}."
        )
    return lines


def barriers(inputs: AnalysisInputs, options: AnalysisOptions) -> Finding:
    """Loss along the line between two models."""
    best = inputs.ranked[: options.most]
    pairs = options.pairs or tuple((best[0], other) for other in best[1:])
    if not pairs:
        return skipped(inputs, "barriers", "no pair of models with a finite score")
    alphas = (0.0, *landscape.ALPHAS, 1.0)
    walk = [mixture(inputs.probe, a, b, alpha) for a, b in pairs for alpha in alphas]
    found = inputs.probe(walk, "barriers")
    table: list[dict[str, Any]] = []
    path: list[Line] = []
    lines: list[str] = []
    for at, (a, b) in enumerate(pairs):
        step = found[at * len(alphas) : (at + 1) * len(alphas)]
        losses = [metrics["nll/mean"] for metrics in step]
        right = [metrics["acc/mean"] for metrics in step]
        path += [
            {"first": a, "second": b, "alpha": alpha, "loss": loss, "error": 1 - hit,
             "excess": loss - (1 - alpha) * losses[0] - alpha * losses[-1]}
            for alpha, loss, hit in zip(alphas, losses, right, strict=True)
        ]  # fmt: skip
        if not all(map(math.isfinite, losses)):
            lines.append(f"The loss between {a} and {b} is not finite everywhere.")
            continue
        height, alpha = landscape.barrier(losses[1:-1], losses[0], losses[-1])
        bow = robustness.concavity(alphas, right)
        table.append(
            {"first": a, "second": b, "height": height, "alpha": alpha,
             "accuracy_margin": bow.margin, "accuracy_margin_alpha": bow.alpha}
        )  # fmt: skip
    if table:
        worst = max(table, key=lambda line: float(line["height"]))
        none = sum(line["height"] == 0 for line in table)
        lines.insert(
            0,
            f"Of {len(table)} lines {none} have no barrier in the loss; the highest is"
            f" {worst['height']:.4f} ({worst['first']}, {worst['second']},"
            f" at α = {worst['alpha']:g}).",
        )
    about = (
        "Loss along the line from one model to another, (1 − α)·first + α·second: how far it rises"
        f" above the straight line between its ends. {inputs.seen}"
    )
    return Finding("barriers", inputs.context, about, lines,
                   {"pairs": table, "path": path}, ("pairs",))  # fmt: skip
