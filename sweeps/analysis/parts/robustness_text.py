"""Describe the robustness analysis in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.analysis import robustness as measures
from sweeps.analysis.core.finding import Line
from sweeps.console.number_format import percent, points

PATH, LINEAR, SINGLE = "end to end", "linear classifier", "model"
"""Curves: all weights, the head alone; and models that are on neither."""

MEAN = "mean"
"""Over tasks, or over shift sets. No task and no set has this name."""

REFERENCE = "reference"


def sentences(
    shown: Sequence[Line],
    unlike: Sequence[Line],
    baseline: Line,
    *,
    soup: bool,
    unit: str = "image",
) -> list[str]:
    """Sentences: where each path is best, whether it beats its ends; the baseline; diversity.

    Args:
        shown: points of one view (a task, or the mean over tasks), all sets.
        unlike: prediction diversity, of the same.
        baseline: of the mean over sets, of the same.
        soup: whether the models are runs of the same tasks.
        unit: what the data's rows are.
    """
    lines = []
    for name in (PATH, LINEAR):
        walk = [line for line in shown if line["curve"] == name]
        if walk:
            lines += path_lines(name, walk)
    tuned = [line for line in shown if line["curve"] == PATH and line["set"] == MEAN]
    lines.append(relative_line(tuned))
    lines.append(baseline_line(shown, baseline, soup=soup))
    if shares := {line["set"]: line["diversity"] for line in unlike}:
        text = ", ".join(f"{name} {percent(share)} %" for name, share in shares.items())
        lines.append(
            f"{unit.capitalize()}s on which the base and {tuned[0]['model']} disagree and one of"
            f" them is right: {text}."
        )
    return lines


def path_lines(name: str, walk: Sequence[Line]) -> list[str]:
    """Sentences about a path: its ends and best points, which α beat both ends, where it is below
    the line."""
    middle = [line for line in walk if line["set"] == MEAN]
    alphas = [line["alpha"] for line in middle]
    first, last = middle[0], middle[-1]
    top = max(middle, key=lambda line: float(line["reference"]))
    under = max(middle, key=lambda line: float(line["shift"]))
    lines = [
        f"{name.capitalize()}, from the base to {first['model']}: the reference goes from"
        f" {percent(first['reference'])} to {percent(last['reference'])} %, the mean of the shift"
        f" sets from {percent(first['shift'])} to {percent(last['shift'])} %. The α that is best on"
        f" the reference, {top['alpha']:g}, has {percent(top['reference'])} and"
        f" {percent(top['shift'])} %; the one that is best under shift, {under['alpha']:g},"
        f" {percent(under['reference'])} and {percent(under['shift'])} %, but was chosen on the"
        " very rows it is measured on."
    ]
    columns = {REFERENCE: [line["reference"] for line in middle]}
    columns |= {MEAN: [line["shift"] for line in middle]}
    wins = measures.beats_both(alphas, columns)
    text = ", ".join(f"{alpha:g}" for alpha in wins)
    lines.append(
        f"{name.capitalize()}: α = {text} beat both ends on the reference and on the mean of the"
        " shift sets."
        if wins
        else f"{name.capitalize()}: no α beats both ends on the reference and on the mean of the"
        " shift sets."
    )
    sets = [each for each in dict.fromkeys(line["set"] for line in walk) if each != MEAN]
    columns = {REFERENCE: columns[REFERENCE]} | {
        each: [line["shift"] for line in walk if line["set"] == each] for each in sets
    }
    bows = {each: measures.concavity(alphas, values) for each, values in columns.items()}
    sags = [
        f"{each} (by {points(-bow.margin).lstrip('+')} points at α = {bow.alpha:g})"
        for each, bow in bows.items()
        if not bow.holds
    ]
    lines.append(
        f"{name.capitalize()}: accuracy falls below the straight line between the ends on"
        f" {', '.join(sags)}."
        if sags
        else f"{name.capitalize()}: accuracy is nowhere below the straight line between the ends."
    )
    return lines


def relative_line(path: Sequence[Line]) -> str:
    """Sentence: accuracy under shift compared with the base's."""
    best = max(path, key=lambda line: float(line["relative"]))
    return (
        f"Relative robustness, on the mean of the shift sets: {points(path[-1]['relative'])} points"
        f" after fine-tuning (α = 1), at most {points(best['relative'])} on the path"
        f" (α = {best['alpha']:g})."
    )


def baseline_line(shown: Sequence[Line], baseline: Line, *, soup: bool) -> str:
    """Sentence about the baseline and the models above it, or why no baseline is fitted."""
    if not soup:
        return (
            "No effective robustness: a baseline is of several models tuned on the same reference,"
            " and these are experts of different tasks."
        )
    if baseline["slope"] is None:
        return f"No effective robustness, for there is no baseline: {baseline['fault']}."
    middle = [line for line in shown if line["set"] == MEAN]
    path = [line for line in middle if line["curve"] == PATH]
    best = max(path, key=lambda line: float(line["effective"]))
    weak = ""
    if baseline["models"] < FEW:
        weak = f" A line through {baseline['models']} models is hardly known."
    return (
        f"Effective robustness, over the baseline of {baseline['models']} models (logit of shift ="
        f" {baseline['slope']:.2f} · logit of reference {signed(baseline['intercept'])}):"
        f" {points(path[0]['effective'])} points of the base, {points(path[-1]['effective'])} of"
        f" {path[-1]['model']}, at most {points(best['effective'])} on the path"
        f" (α = {best['alpha']:g}).{weak}"
    )


FEW = 5
"""Models below which a baseline is called weak. Ours."""


def signed(value: float) -> str:
    """A number with its sign, as a summand.

    >>> signed(-0.5), signed(0.25)
    ('− 0.50', '+ 0.25')
    """
    return f"{'−' if value < 0 else '+'} {abs(value):.2f}"
