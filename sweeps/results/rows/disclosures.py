"""Disclosures of a result row: which splits the method used, and whether it used labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from actors.data.task import Kind
from actors.experts.metrics import EXACT, OUTSIDE, RECOGNITION
from actors.experts.unseen_tasks import stays_with_seen
from fusion.kinds import Row
from fusion.methods.routed.dawin import is_oracle, transductive
from fusion.registry import (
    METHODS,
    Adapted,
    Adaptive,
    Fitted,
    InModel,
    PerTask,
    Routed,
    Selected,
    StatisticsBased,
)
from sweeps.results.comparison import MEANS, ORACLE
from sweeps.spec.method import for_kind
from sweeps.spec.sweep import SplitSpec, SweepSpec

CHOSEN_ON_FIT = "chosen on the rows that are trained on, splits.select being splits.fit"

AVERAGES = (
    "simple_average", "weighted_average", "uniform_soup", "greedy_soup", "learned_soup",
    "ensemble", "greedy_ensemble",
)  # fmt: skip
"""Methods that do nothing with one ingredient, and of which a reader must know what is there
twice."""


LEFT_OUT = "unseen tasks left out"

WHY: Mapping[type[Row], str] = {
    PerTask: "it makes one model a task with an expert",
    Fitted: "a classifier is fitted to each seen task",
    Adapted: "it learns a module for each task with an expert",
    Routed: "it reads all {unit}s of a task, or their labels, before it classifies them",
}
"""Why a method is not measured on tasks that no expert is of; `unit` is what a row is."""


def notes_of(
    method: str,
    params: Mapping[str, Any],
    splits: SplitSpec,
    *,
    unseen: Collection[str] = (),
    under: str = "",
    unit: Kind = "image",
) -> tuple[str, ...]:
    """Disclosures of a row; none for a method that reads weights alone.

    Args:
        method: of the row.
        params: its parameters.
        splits: of the sweep.
        unseen: tasks that no expert is of.
        under: the shift whose rows are adapted to, in words; empty: clean ones are.
        unit: what the data's rows are.

    >>> notes_of("adamerging", {"adapt_on": "report"}, SplitSpec())
    ('adapted to the unlabelled test images it is reported on',)
    >>> notes_of("adamerging", {}, SplitSpec(), unit="text")
    ('adapted to unlabelled train texts',)
    """
    found = seen_by(method, params, splits, under, unit)
    row = METHODS.get(method)
    if row is not None and unseen and found and row.stepwise:
        found = (f"{found[0]}, seen tasks alone", *found[1:])
    if row is not None and unseen and stays_with_seen(method, params):
        return (*found, f"{LEFT_OUT}: {for_kind(WHY, row).format(unit=unit)}")
    return found


def outside_answers(
    metrics: Mapping[str, int | float | None], classes: Mapping[str, int]
) -> tuple[str, ...]:
    """Note on a row that is below chance by exact match because it writes other texts.

    It would be at chance or above if texts that are none of the answers were guessed classes.

    Args:
        metrics: of the row; `exact/<task>` and `outside/<task>` are read.
        classes: task -> number of classes.

    >>> outside_answers({"exact/rte": 0.1, "outside/rte": 0.9}, {"rte": 2})
    ('below chance by exact match on rte: the model writes texts that are none of the answers',)
    >>> outside_answers({"exact/rte": 0.1, "outside/rte": 0.0}, {"rte": 2})
    ()
    """
    found = []
    for task, count in classes.items():
        exact, outside = (metrics.get(f"{kind}/{task}") for kind in (EXACT.name, OUTSIDE))
        if exact is None or outside is None:
            continue
        if exact * count < 1 <= exact * count + outside:
            found.append(task)
    if not found:
        return ()
    where = ", ".join(found)
    said = f"below chance by {EXACT.title} on {where}"
    return (f"{said}: the model writes texts that are none of the answers",)


def recognition(metrics: Mapping[str, int | float | None], unit: str) -> tuple[str, ...]:
    """Note on how often a gate's largest weight is that of the task's own expert.

    Args:
        metrics: of the row; `recognition/<task>` and their mean are read.
        unit: what the data's rows are.

    >>> recognition({"recognition/a": 1.0, "recognition/mean": 1.0}, "text")
    ("recognition: the task's own expert has the largest weight on 100.0 % of texts (a 100.0)",)
    >>> recognition({"acc/a": 1.0}, "text")
    ()
    """
    start = f"{RECOGNITION}/"
    found = {
        name.removeprefix(start): value
        for name, value in metrics.items()
        if name.startswith(start) and value is not None
    }
    mean = found.get("mean")
    if mean is None:
        return ()
    each = ", ".join(
        f"{task} {100 * value:.1f}" for task, value in found.items() if task not in MEANS
    )
    return (
        f"{RECOGNITION}: the task's own expert has the largest weight on {100 * mean:.1f} % of"
        f" {unit}s ({each})",
    )


def under_words(spec: SweepSpec) -> str:
    """Name and description of the shift that methods adapt to; empty if there is none."""
    if spec.adapt_on_shift is None:
        return ""
    shift = spec.shifts[spec.adapt_on_shift]
    what = f"{shift.corruption}, severity {shift.severity}"
    named = spec.adapt_on_shift != shift.corruption
    return f"{spec.adapt_on_shift} ({what})" if named else what


def seen_by(
    method: str,
    params: Mapping[str, Any],
    splits: SplitSpec,
    under: str = "",
    unit: Kind = "image",
) -> tuple[str, ...]:
    """Disclosure of the rows of data that a row of the comparison has used, and how."""
    row = METHODS.get(method)
    return () if row is None else for_kind(SEEN, row)(row, params, splits, under, unit)


def nothing(*_: Any) -> tuple[str, ...]:
    """A method that reads weights alone, or what every row is evaluated with."""
    return ()


def per_task(
    row: PerTask, params: Mapping[str, Any], splits: SplitSpec, under: str, unit: Kind
) -> tuple[str, ...]:
    """A method that makes one model for each task."""
    return (f"one model a task: of each {unit} it must be known which task it is of",)


def from_statistics(
    row: StatisticsBased, params: Mapping[str, Any], splits: SplitSpec, under: str, unit: Kind
) -> tuple[str, ...]:
    """A method that merges by statistics of data."""
    rows = f"unlabelled {splits.fit} {unit}s{f' under {under}' if under else ''}"
    return (f"statistics of {rows}, of each expert on its own task",)


def stepwise(
    row: Adaptive | InModel, params: Mapping[str, Any], splits: SplitSpec, under: str, unit: Kind
) -> tuple[str, ...]:
    """A method that learns in gradient steps."""
    return learned_from(row, row.bound(params), splits, under, unit)


def fitted(
    row: Fitted, params: Mapping[str, Any], splits: SplitSpec, under: str, unit: Kind
) -> tuple[str, ...]:
    """A method that fits classifiers to embeddings."""
    split = " and ".join(dict.fromkeys([*([splits.fit] if row.fits else []), splits.select]))
    same = f"; {CHOSEN_ON_FIT}" if row.fits and splits.fit == splits.select else ""
    return (f"fitted to labelled {split} embeddings, task by task{same}",)


def adapted(
    row: Adapted, params: Mapping[str, Any], splits: SplitSpec, under: str, unit: Kind
) -> tuple[str, ...]:
    """A method that learns a module for each task on outputs of a merged model."""
    rows = f"unlabelled {splits.fit} {unit}s{f' under {under}' if under else ''}"
    return (
        f"adapted to {rows}, task by task",
        f"a module a task: of each {unit} it must be known which task it is of",
    )


def selected(
    row: Selected, params: Mapping[str, Any], splits: SplitSpec, under: str, unit: Kind
) -> tuple[str, ...]:
    """A method that selects ingredients by their scores."""
    if row.selection(**params).role == "select":
        return (CHOSEN_ON_FIT,) if splits.fit == splits.select else ()
    return (f"{ORACLE}: chosen by the labels it is measured by",)


def routed(
    row: Routed, params: Mapping[str, Any], splits: SplitSpec, under: str, unit: Kind
) -> tuple[str, ...]:
    """A method that routes by the experts' logits of the rows that it is measured on."""
    found = []
    if is_oracle(params):
        found.append(f"{ORACLE}: reads the labels it is measured by")
    if transductive(params):
        found.append(f"coefficients read off all {unit}s it is measured on, without labels")
    return tuple(found)


SEEN: Mapping[type[Row], Callable[..., tuple[str, ...]]] = {
    Row: nothing,
    PerTask: per_task,
    StatisticsBased: from_statistics,
    Adaptive: stepwise,
    InModel: stepwise,
    Fitted: fitted,
    Adapted: adapted,
    Selected: selected,
    Routed: routed,
}
"""Kind of method -> which data its rows have seen: `handler(row, params, splits, under, unit)`."""


def notes_of_pool(method: str, hashes: Mapping[str, str]) -> tuple[str, ...]:
    """Disclosures of a method that averages ingredients: only one ingredient, or equal ones.

    Args:
        method: of the row.
        hashes: ingredient -> content hash of its checkpoint.

    >>> notes_of_pool("uniform_soup", {"a": "x", "b": "y", "c": "x"})
    ('c is a copy of a',)
    >>> notes_of_pool("greedy_soup", {"a": "x"})
    ('one ingredient: nothing is averaged',)
    """
    if method not in AVERAGES:
        return ()
    if len(hashes) == 1:
        return ("one ingredient: nothing is averaged",)
    first: dict[str, str] = {}
    for name, key in hashes.items():
        first.setdefault(key, name)
    return tuple(
        f"{name} is a copy of {first[key]}" for name, key in hashes.items() if first[key] != name
    )


def learned_from(
    row: Adaptive | InModel,
    params: Mapping[str, Any],
    splits: SplitSpec,
    under: str = "",
    unit: Kind = "image",
) -> tuple[str, ...]:
    """Disclosure of the rows that a method learned from; whether it is evaluated on them."""
    role = params["adapt_on"]
    split = getattr(splits, role)
    if not params["steps"] and not params.get("coefficient_steps"):
        return ()
    if "labels" in row.reads:
        optimistic = "; its score there is no measurement" if role == "select" else ""
        return (f"learned from {split} {unit}s with their labels{optimistic}",)
    if under:
        same = " of those it is reported on" if split == splits.report else ""
        return (f"adapted to unlabelled {split} {unit}s{same} under {under}",)
    if split == splits.report:
        return (f"adapted to the unlabelled {split} {unit}s it is reported on",)
    return (f"adapted to unlabelled {split} {unit}s",)
