"""Table of shift sets: accuracy of each row, and its difference to the base.

Effective robustness is not among them: its baseline is of single models tuned on the reference, and
a comparison has at most two of those (`best_single`, `oracle_single`); all other rows are averages,
ensembles or experts of different tasks, which are what a baseline would judge. `sweeps analyse`
has the single models.
"""

from __future__ import annotations

from typing import Any

from actors.experts.metrics import RankedMetric
from fusion.analysis.robustness import relative_robustness
from sweeps.console.number_format import percent, points
from sweeps.results.comparison import Comparison, Row, mean_of


def table(comparison: Comparison) -> dict[str, Any] | None:
    """Columns and lines; None if nothing was evaluated on a shift set.

    A cell is the mean accuracy on the set, and the difference to the base on the same set: relative
    robustness, Taori et al. 2020, arXiv:2007.00644. The last column is the mean over sets.
    """
    names = list(dict.fromkeys(name for row in comparison.rows for name in row.shifts))
    if not names:
        return None
    metric = comparison.ranked_by
    base = next((row for row in comparison.rows if row.method == "pretrained"), None)
    lines = [
        {
            "row": row,
            "report": percent(comparison.score(row)),
            "cells": [
                *(
                    cell(score(row, name, metric), score(base, name, metric))
                    | {"interval": span(row, name, metric)}
                    for name in names
                ),
                cell(mean(row, names, metric), mean(base, names, metric)),
            ],
        }
        for row in comparison.ranked
        if row.shifts
    ]
    return {"columns": [*names, "mean"], "lines": lines, "adapted": comparison.adapt_on_shift}


def sentence(comparison: Comparison) -> str:
    """Description of the table."""
    of = "seen tasks" if comparison.unseen else "tasks"
    found = (
        f"Mean {comparison.ranked_by.title} over {of} on shift sets, %, with 95 % intervals, and"
        " in points above the pretrained model on the same set. Nothing was chosen by them."
    )
    if comparison.adapt_on_shift is None:
        return found
    return (
        f"{found} Methods that adapt to unlabelled rows saw those of {comparison.adapt_on_shift}."
    )


def score(row: Row | None, name: str, metric: RankedMetric) -> float | None:
    """The mean score of a row on a shift set; over the seen tasks, where some are unseen."""
    return mean_of(metric, row.shifts.get(name, {})) if row is not None else None


def span(row: Row, name: str, metric: RankedMetric) -> str:
    """The 95 % interval as text; empty if it is not known."""
    found = row.shifts_ci95.get(name, {})
    ends = found.get(f"{metric.name}/seen", found.get(f"{metric.name}/mean"))
    return f"{percent(ends[0])}–{percent(ends[1])}" if ends else ""


def mean(row: Row | None, names: list[str], metric: RankedMetric) -> float | None:
    """Mean over all shift sets, with equal weights."""
    found = [value for name in names if (value := score(row, name, metric)) is not None]
    return sum(found) / len(names) if len(found) == len(names) else None


def cell(value: float | None, base: float | None) -> dict[str, str]:
    """One score, and its difference to the base's."""
    if value is None or base is None:
        return {"text": percent(value), "gain": "", "interval": ""}
    gain = points(float(relative_robustness(value, base)))
    return {"text": percent(value), "gain": gain, "interval": ""}
