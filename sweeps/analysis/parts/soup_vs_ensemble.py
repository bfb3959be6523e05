"""Analysis of a soup against the ensemble of the same two models."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from fusion.analysis.soup_vs_ensemble import second_difference, soup_gap
from fusion.errors import InputError
from fusion.logits.calibration import calibrated_beta, losses
from sweeps.analysis.core.evaluated_points import PROBE, labels_of, mixture
from sweeps.analysis.core.finding import Finding, Line
from sweeps.analysis.core.inputs import AnalysisInputs, AnalysisOptions, skipped
from sweeps.spec.trial_key import derive_seed

STEP = 0.05
"""ε of the second difference: between rounding of float32 logits and the fourth derivative."""

HIGHEST = 100.0
"""Of the inverse temperature: where it goes when no row that calibrates it is wrong."""

EXACT = ("float32", "float64")
"""Precisions whose logits bear a second difference."""


def gap(inputs: AnalysisInputs, options: AnalysisOptions) -> Finding:
    """Loss of the soup minus that of the ensemble, and its second-order approximation."""
    if inputs.dtype not in EXACT:
        why = f"models are computed in {inputs.dtype}; a second difference needs float32"
        return skipped(inputs, "gap", why)
    pairs = options.pairs or tuple(combinations(inputs.ranked[:2], 2))
    if not pairs:
        return skipped(inputs, "gap", "no two models with a finite score")
    progress = inputs.probe.progress
    progress.start("gap", 5 * len(pairs))
    table: list[dict[str, Any]] = []
    lines: list[str] = []
    for a, b in pairs:
        walk = []
        for alpha in (0.0, options.alpha - STEP, options.alpha, options.alpha + STEP, 1.0):
            point = mixture(inputs.probe, a, b, alpha)
            walk.append(inputs.probe.experts.logits(inputs.probe.recipe(point), PROBE))
            progress.advance("gap")
        for task in inputs.data:
            try:
                found = rows_of(inputs, task, [logits[task] for logits in walk], options.alpha)
            except InputError as error:
                lines.append(f"{a}, {b} on {task}: {error}")
                continue
            table += [{"first": a, "second": b, "task": task, **row} for row in found]
    lines += [sentence(row) for row in table if row["temperature"] == "calibrated"]
    about = (
        f"Loss of the averaged weights minus loss of the averaged logits at α = {options.alpha:g},"
        " with one inverse temperature β for both: calibrated on one half of the rows and measured"
        " on the other, and β = 1. ± is a paired bootstrap's standard error."
        f" {inputs.seen}"
    )
    return Finding("gap", inputs.context, about, lines, {"pairs": table}, ("pairs",))


def sentence(row: Line) -> str:
    """Sentence about a task's row."""
    bound = ""
    if row["beta"] >= HIGHEST * (1 - 1e-9):
        bound = (
            f" β is at its bound ({HIGHEST:g}): the calibrating half has no error to learn from."
        )
    return (
        f"{row['first']}, {row['second']} on {row['task']}: soup minus ensemble is"
        f" {row['gap']:+.2g} ± {row['gap_error']:.1g} in loss, approximated as"
        f" {row['approximation']:+.2g} ± {row['approximation_error']:.1g}.{bound}"
    )


def rows_of(
    inputs: AnalysisInputs, task: str, walk: list[Tensor], alpha: float
) -> list[dict[str, Any]]:
    """A task's two rows, for both inverse temperatures.

    Raises:
        InputError: logits that are not finite, or too few rows to halve.
    """
    labels = labels_of(inputs.data[task], PROBE)
    if len(labels) < 4:
        raise InputError(f"{len(labels)} rows; at least 4 needed")
    half = torch.Generator().manual_seed(derive_seed(inputs.seed, "gap", task))
    order = torch.randperm(len(labels), generator=half)
    fit, rest = order[: len(order) // 2], order[len(order) // 2 :]
    beta = calibrated_beta(walk[2][fit], labels[fit], high=HIGHEST)
    y = labels[rest]
    first, minus, middle, plus, last = (logits[rest] for logits in walk)
    rows = []
    for temperature, value in (("calibrated", beta), ("one", 1.0)):
        bend = second_difference(
            losses(minus, y, value), losses(middle, y, value), losses(plus, y, value), STEP
        )
        found = soup_gap(first, last, middle, y, alpha=alpha, beta=value, second=bend)
        rows.append({"temperature": temperature, "beta": value, "rows": len(y), **vars(found)})
    return rows
