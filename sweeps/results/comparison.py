"""The comparison of a sweep: one row a method, intervals, and paired tests between rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import ConfigDict, Field

from actors.files.paths import Plain
from fusion.analysis.significance import holm, mcnemar, mean_interval, wilson
from sweeps.results.correctness_file import Correct
from sweeps.spec.reference_methods import REFERENCES

Metrics: TypeAlias = Mapping[str, int | float | None]
"""`acc/mean`, `acc/<task>`, `nll/…` -> value; None where it was not finite."""


ORACLE = "oracle"
"""How the note of a row begins that has read the labels it is measured by."""

MEAN, SEEN, UNSEEN = "acc/mean", "acc/seen", "acc/unseen"
"""Mean accuracies: over all tasks evaluated, over those with an expert, and over the others."""

KEPT_OF_FAILED = ("trial_key", "method", "params", "error")


LATER = ConfigDict(extra="ignore")
"""Of what is read from a file: a later version may have written more fields."""


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a reference, or a method's winner on the select split."""

    __pydantic_config__ = LATER

    method: Plain
    kind: Plain
    params: Mapping[str, Any] = field(default_factory=dict)
    trials: int = 0
    """Trials of the method, failed ones included."""
    val: Metrics = field(default_factory=dict)
    test: Metrics = field(default_factory=dict)
    test_ci95: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    shifts: Mapping[str, Metrics] = field(default_factory=dict)
    """Shift set -> the same metrics on its rows."""
    shifts_ci95: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    """Shift set -> 95 % intervals of the accuracies."""
    cost: Metrics = field(default_factory=dict)
    """`wall_s`: time during which a trial of the method ran; `trial_s`: mean over its trials;
    `peak_bytes`: the most any of them held."""
    recipe: Annotated[str, Field(pattern=r"^recipes/[^/\\]+\.yaml$")] | None = None
    run_id: str | None = None
    trial_key: Plain | None = None
    notes: tuple[str, ...] = ()
    """What a reader must know beside the numbers: images that it adapted to, labels it read."""

    @property
    def oracle(self) -> bool:
        """Whether it has read labels that it is measured by: shown, and never the best."""
        return any(note.startswith(ORACLE) for note in self.notes)

    @property
    def score(self) -> float | None:
        """Mean accuracy on the report split, on the select split while there is no other; over the
        seen tasks, where some are unseen."""
        metrics = self.test or self.val
        return metrics.get(SEEN, metrics.get(MEAN))


@dataclass(frozen=True)
class Pair:
    """Exact McNemar test of two rows on the same samples, pooled over tasks."""

    __pydantic_config__ = LATER

    first: str
    second: str
    n: int
    b: int
    """Samples that only `first` has right."""
    c: int
    """Samples that only `second` has right."""
    p: float
    p_holm: float
    """Adjusted over all pairs of the comparison."""


@dataclass(frozen=True)
class Comparison:
    """What a sweep found; `comparison.json` field by field."""

    __pydantic_config__ = LATER

    sweep: str
    spec_hash: str
    select_on: str
    rows: tuple[Row, ...]
    report_on: str = "test"
    metric: str = "acc/mean"
    tasks: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    """Those of them without an expert, which nothing was learned from, fitted to or chosen by."""
    pairs: tuple[Pair, ...] = ()
    """Over the seen tasks."""
    failed: tuple[Mapping[str, Any], ...] = ()
    """Failed trials: `trial_key`, `method`, `params`, `error`."""
    created: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None
    adapt_on_shift: str | None = None
    """The shift set whose images methods adapted to; None: clean ones."""

    @property
    def headline(self) -> str:
        """The metric that rows are ranked by: `acc/mean`, or `acc/seen` where tasks are unseen."""
        return SEEN if self.unseen else MEAN

    @property
    def seen(self) -> tuple[str, ...]:
        """The tasks that the headline is a mean of."""
        return tuple(task for task in self.tasks if task not in self.unseen)

    @property
    def optimistic(self) -> bool:
        """Whether winners were chosen on the very split they are reported on."""
        return self.select_on == self.report_on

    @property
    def best(self) -> Row | None:
        """The best fused model: references and oracles aside, the highest mean accuracy.

        Once a row is reported, only reported ones count: splits are not compared to each other.
        """
        rows = [
            row
            for row in self.rows
            if row.method not in REFERENCES and row.score is not None and not row.oracle
        ]
        rows = [row for row in rows if row.test] or rows
        return max(rows, key=lambda row: row.score or 0.0, default=None)


def compare(
    sweep: str,
    spec_hash: str,
    rows: Iterable[Row],
    correct: Mapping[str, Correct],
    *,
    select_on: str,
    report_on: str = "test",
    metric: str = "acc/mean",
    tasks: Sequence[str] = (),
    unseen: Collection[str] = (),
    failed: Iterable[Mapping[str, Any]] = (),
    created: str | None = None,
    versions: Mapping[str, str] | None = None,
    command: str | None = None,
    adapt_on_shift: str | None = None,
) -> Comparison:
    """Build the comparison: accuracies, intervals and tests come from `correct`.

    Args:
        sweep: name of the sweep.
        spec_hash: hash of its file.
        rows: references and winners, with their select-split metrics; other report-split metrics
            (`nll/…`) are kept, `acc/…` is counted from `correct`.
        correct: row name -> task -> per-sample correctness on the report split; rows that are not
            evaluated yet (a running sweep) are absent.
        select_on: split on which winners were chosen.
        report_on: split of `correct`.
        metric: what they were chosen by.
        tasks: order of the tasks; default: as first met.
        unseen: those of them that have no expert.
        failed: failed ledger entries, field by field.
        created: ISO time of the comparison.
        versions: package -> version.
        command: what reproduces the sweep.
        adapt_on_shift: the shift set whose images methods adapted to.

    Raises:
        ValueError: two rows have a different number of samples in one task.
    """
    tested = (with_test(row, correct.get(row.method), unseen) for row in rows)
    scored = sorted(tested, key=position)
    names = tuple(tasks) or tasks_of(scored)
    return Comparison(
        sweep=sweep,
        spec_hash=spec_hash,
        select_on=select_on,
        rows=tuple(scored),
        report_on=report_on,
        metric=metric,
        tasks=names,
        unseen=tuple(name for name in names if name in unseen),
        pairs=paired([row.method for row in scored], correct, unseen),
        failed=tuple(
            finite({name: entry[name] for name in KEPT_OF_FAILED})
            for entry in sorted(failed, key=lambda entry: (entry["method"], entry["trial_key"]))
        ),
        created=created,
        versions=dict(versions or {}),
        command=command,
        adapt_on_shift=adapt_on_shift,
    )


def with_test(row: Row, correct: Correct | None, unseen: Collection[str] = ()) -> Row:
    """`row` in JSON's own types, with accuracies and 95 % intervals counted from `correct`."""
    kind = "reference" if row.method in REFERENCES else row.kind
    row = replace(
        row,
        kind=kind,
        params=finite(row.params),
        val=finite(row.val),
        test=finite(row.test),
        shifts={name: finite(found) for name, found in row.shifts.items()},
        cost=finite(row.cost),
    )
    if not correct:
        return row
    counts = {task: (int(hits.sum()), len(hits)) for task, hits in correct.items()}
    accuracy = {f"acc/{task}": hits / n for task, (hits, n) in counts.items()}
    groups = groups_of(counts, unseen)
    means = {
        name: math.fsum(accuracy[f"acc/{task}"] for task in members) / len(members)
        for name, members in groups.items()
    }
    ci95 = intervals(counts, unseen)
    return replace(row, test={**row.test, **means, **accuracy}, test_ci95=ci95)


def groups_of(tasks: Iterable[str], unseen: Collection[str]) -> dict[str, list[str]]:
    """The means that there are -> the tasks that each is of."""
    names = list(tasks)
    groups = {MEAN: names}
    if unseen:
        groups[SEEN] = [task for task in names if task not in unseen]
        groups[UNSEEN] = [task for task in names if task in unseen]
    return {name: members for name, members in groups.items() if members}


def intervals(
    counts: Mapping[str, tuple[int, int]], unseen: Collection[str] = ()
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the accuracies and their means, from task -> (right, samples)."""
    found = {
        name: mean_interval([counts[task] for task in members])
        for name, members in groups_of(counts, unseen).items()
    } | {f"acc/{task}": wilson(hits, n) for task, (hits, n) in counts.items()}
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def position(row: Row) -> tuple[int, float, str]:
    """Sort key: pretrained, then ascending (without a value first), experts last."""
    rank = {"pretrained": 0, "experts": 2}.get(row.method, 1)
    return rank, -math.inf if row.score is None else row.score, row.method


def tasks_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """The tasks that any row has an accuracy for, as first met."""
    names = dict.fromkeys(name for row in rows for name in (*row.test, *row.val))
    return tuple(
        name.removeprefix("acc/")
        for name in names
        if name.startswith("acc/") and name not in (MEAN, SEEN, UNSEEN)
    )


def paired(
    names: Sequence[str], correct: Mapping[str, Correct], unseen: Collection[str] = ()
) -> tuple[Pair, ...]:
    """McNemar tests between all rows that have samples, over the seen tasks that both have."""
    tests = []
    for first, second in combinations([name for name in names if correct.get(name)], 2):
        both = [task for task in correct[first] if task in correct[second]]
        shared = [task for task in both if task not in unseen]
        for task in shared:
            sizes = len(correct[first][task]), len(correct[second][task])
            if sizes[0] != sizes[1]:
                raise ValueError(f"{first}, {second}: {task}: {sizes[0]} and {sizes[1]} samples")
        if shared:
            a = np.concatenate([correct[first][task] for task in shared])
            b = np.concatenate([correct[second][task] for task in shared])
            only = int((a & ~b).sum()), int((b & ~a).sum())
            tests.append((first, second, len(a), *only, float(mcnemar(a, b))))
    adjusted = holm([test[-1] for test in tests])
    return tuple(Pair(*test, p_holm=float(p)) for test, p in zip(tests, adjusted, strict=True))


def finite(value: Any) -> Any:
    """`value` as JSON has it: numpy scalars and tuples unwrapped, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(name): finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def split(comparison: Comparison) -> str:
    """The split that the rows' scores are of."""
    tested = any(row.test for row in comparison.rows)
    return comparison.report_on if tested else comparison.select_on
