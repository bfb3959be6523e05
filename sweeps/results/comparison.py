"""The comparison of a sweep: one row for each method, confidence intervals, and paired tests."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from actors.artifacts.recipe import REFERENCES
from actors.experts.metrics import ACCURACY, EXACT, RankedMetric, Samples, ranked_by
from actors.files.paths import Plain
from fusion.analysis.significance import (
    bootstrap_interval,
    bootstrap_scores,
    bootstrap_test,
    holm,
    mcnemar,
    mean_interval,
    wilson,
)
from fusion.registry import METHODS
from sweeps.results.correctness_file import Correct

Metrics: TypeAlias = Mapping[str, int | float | None]
"""`acc/mean`, `acc/<task>`, `nll/…` -> value; None where it was not finite."""


ORACLE = "oracle"
"""How the note of a row begins that has read the labels it is measured by."""

MEANS = ("mean", "seen", "unseen")
"""Means of a metric: over all tasks evaluated, over those with an expert, and over the others."""

KEPT_OF_FAILED = ("trial_key", "method", "params", "error")
KEPT_OF_STOPPED = ("trial_key", "method", "params", "stopped")


LATER = ConfigDict(extra="ignore")
"""Of what is read from a file: a later version may have written more fields."""


@dataclass(frozen=True)
class Row:
    """A row of the comparison: a reference, or a method's winner on the select split."""

    __pydantic_config__ = LATER

    method: Plain
    kind: Plain
    params: Mapping[str, Any] = field(default_factory=dict)
    trials: int = 0
    """Trials of the method, failed and stopped ones included."""
    val: Metrics = field(default_factory=dict)
    test: Metrics = field(default_factory=dict)
    test_ci95: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    shifts: Mapping[str, Metrics] = field(default_factory=dict)
    """Shift set -> the same metrics on its rows."""
    shifts_ci95: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    """Shift set -> 95 % intervals of the accuracies."""
    cost: Metrics = field(default_factory=dict)
    """Of the trials: `wall_s`, time during which one of the method's ran; `trial_s`, their mean;
    `peak_bytes`, the most any of them held; `learn_s`, time of the selected one, if it learned.

    Of the result: `models` held, forward `passes` an input, `extra_parameters` and `mask_bits`
    stored on top of one model, `merge_s`, and `input_s`: time of an input of a fixed batch, alone.
    Comparisons of earlier versions have the trials' only."""
    recipe: Annotated[str, Field(pattern=r"^recipes/[^/\\]+\.yaml$")] | None = None
    run_id: str | None = None
    trial_key: Plain | None = None
    notes: tuple[str, ...] = ()
    """What a reader must know beside the numbers: images that it adapted to, labels it read."""
    asked: bool = True
    """Whether the sweep file lists the method; False: the program added it, as a reference."""

    @property
    def reference(self) -> bool:
        """Whether it is what methods are compared with: base, experts, and every row that the
        sweep file did not ask for. A reference never wins."""
        return self.method in REFERENCES or self.kind == "reference" or not self.asked

    @property
    def single(self) -> bool:
        """Whether it is one model for all tasks and samples, which can be exported."""
        return is_single(self.method)

    @property
    def oracle(self) -> bool:
        """Whether it read labels of the rows it is evaluated on; it is shown, and is never the
        best."""
        return any(note.startswith(ORACLE) for note in self.notes)


def is_single(method: str) -> bool:
    """Whether a row's method makes one model for all tasks and samples."""
    found = METHODS.get(method)
    return method != "experts" and (found is None or found.output == "one_model")


@dataclass(frozen=True)
class Pair:
    """Test of two rows on the same samples.

    Exact McNemar, pooled over tasks, where a sample is right or wrong on its own; else a paired
    bootstrap of the mean over tasks, which counts no samples (`b` and `c` are 0).
    """

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
    difference: float | None = None
    """By how much `first` is better, of a bootstrap; None: it follows from `b` and `c`."""


@dataclass(frozen=True)
class Header:
    """What a comparison is of: the sweep, its splits, metric and tasks, and how it was made."""

    sweep: str
    """Name of the sweep."""
    spec_hash: str
    """Hash of its file."""
    select_on: str
    """Split on which winners were chosen."""
    report_on: str = "test"
    """Split of the reported accuracies."""
    metric: str = "acc/mean"
    """What winners were chosen by."""
    tasks: tuple[str, ...] = ()
    """In the order of the report."""
    unseen: Collection[str] = ()
    """Those of them without an expert."""
    created: str | None = None
    """ISO time."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package -> version."""
    command: str | None = None
    """Command line that reproduces the sweep."""
    adapt_on_shift: str | None = None
    """The shift set whose images methods adapted to; None: clean ones."""
    precision: str = "fp32"
    """Precision of products of activations where methods learned and winners were chosen."""
    report_precision: str = "fp32"
    """The same where they were measured for the report."""
    delta_dtype: str = "float32"
    """Dtype that task vectors were rounded to."""


@dataclass(frozen=True)
class Comparison:
    """The comparison of a sweep; `comparison.json` has the same fields."""

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
    stopped: tuple[Mapping[str, Any], ...] = ()
    """Trials that were stopped in a race: `trial_key`, `method`, `params`, and `stopped`: `rows`
    evaluated `of` all, the value `at_most` possible for it, and the `best` that it was below. They
    have no score."""
    created: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None
    adapt_on_shift: str | None = None
    """The shift set whose images methods adapted to; None: clean ones."""
    precision: str = "fp32"
    """Precision of products of activations where methods learned and winners were chosen."""
    report_precision: str = "fp32"
    """The same where they were measured for the report."""
    delta_dtype: str = "float32"
    """Dtype that task vectors were rounded to."""

    @property
    def selection(self) -> tuple[str, str, str, str, str, str]:
        """Arguments of `number_format.selection`: splits, metric, precisions and the dtype of task
        vectors."""
        kinds = self.precision, self.report_precision, self.delta_dtype
        return self.select_on, self.report_on, self.metric, *kinds

    @property
    def ranked_by(self) -> RankedMetric:
        """The metric that rows are ranked by: the one selected by, or accuracy."""
        return ranked_by(self.metric)

    def value(self, task: str) -> str:
        """Name of that metric's value of a task, or mean: `acc/<task>`."""
        return f"{self.ranked_by.name}/{task}"

    @property
    def headline(self) -> str:
        """The value that rows are ranked by: `acc/mean`, or `acc/seen` where tasks are unseen."""
        return self.value("seen" if self.unseen else "mean")

    @property
    def means(self) -> tuple[str, ...]:
        """The means that reports show: `acc/mean`, or `acc/seen` and `acc/unseen`."""
        return tuple(map(self.value, ("seen", "unseen") if self.unseen else ("mean",)))

    @property
    def beside(self) -> RankedMetric | None:
        """The metric whose mean is shown beside the one that rows are ranked by, where models write
        answers: exact match, or accuracy if rows are ranked by exact match."""
        if self.ranked_by is EXACT:
            return ACCURACY
        measured = (mean_of(EXACT, row.test or row.val) for row in self.rows)
        return EXACT if any(value is not None for value in measured) else None

    def value_beside(self, row: Row) -> float | None:
        """A row's mean of that metric, on the split of its score."""
        return None if self.beside is None else mean_of(self.beside, row.test or row.val)

    def score(self, row: Row) -> float | None:
        """A row's mean on the report split, on the select split while there is no other; over the
        seen tasks, where some are unseen."""
        return mean_of(self.ranked_by, row.test or row.val)

    @property
    def seen(self) -> tuple[str, ...]:
        """The tasks that the headline is a mean of."""
        return tuple(task for task in self.tasks if task not in self.unseen)

    @property
    def optimistic(self) -> bool:
        """Whether winners were selected on the split that is reported."""
        return self.select_on == self.report_on

    @property
    def best(self) -> Row | None:
        """The winner: the best method of the sweep file that is one model.

        Where none of them is one model, the best of all. References and oracles never win.
        """
        rows = self.rivals
        return max([row for row in rows if row.single] or rows, key=self.order, default=None)

    @property
    def top(self) -> Row | None:
        """The best method of the sweep file, one model or several."""
        return max(self.rivals, key=self.order, default=None)

    @property
    def rivals(self) -> list[Row]:
        """Rows that may win: scored methods of the sweep file, without oracles.

        Once a row is reported, only reported ones count: splits are not compared to each other.
        """
        rows = [
            row
            for row in self.rows
            if not row.reference and self.score(row) is not None and not row.oracle
        ]
        return [row for row in rows if row.test] or rows

    @property
    def methods(self) -> tuple[Row, ...]:
        """Rows of the sweep file's methods, the best first; those without a score last."""
        return self.ordered(row for row in self.rows if not row.reference)

    @property
    def references(self) -> tuple[Row, ...]:
        """All other rows, the best first."""
        return self.ordered(row for row in self.rows if row.reference)

    @property
    def ranked(self) -> tuple[Row, ...]:
        """All rows as they are shown: methods, then references, each with the best first."""
        return (*self.methods, *self.references)

    def ordered(self, rows: Iterable[Row]) -> tuple[Row, ...]:
        """Rows by score, the best first; equal ones by name, those without a score last."""
        return tuple(sorted(rows, key=lambda r: (self.score(r) is None, -self.order(r), r.method)))

    def normalised(self, row: Row) -> float | None:
        """Mean over the seen tasks of the row's score divided by that of the task's own expert.

        None where an expert's score is missing or not positive, and for metrics of losses.
        """
        experts = self.row("experts")
        if experts is None or not self.ranked_by.larger_is_better:
            return None
        shares = []
        for task in self.seen:
            own, whole = (
                (each.test if row.test else each.val).get(self.value(task))
                for each in (row, experts)
            )
            if own is None or whole is None or whole <= 0:
                return None
            shares.append(own / whole)
        return math.fsum(shares) / len(shares) if shares else None

    def row(self, method: str) -> Row | None:
        """The row of a method; None if there is none."""
        return next((row for row in self.rows if row.method == method), None)

    def order(self, row: Row) -> float:
        """A row's score, larger is better."""
        sign = 1.0 if self.ranked_by.larger_is_better else -1.0
        return sign * (self.score(row) or 0.0)


def compare(
    header: Header,
    rows: Iterable[Row],
    correct: Mapping[str, Correct],
    failed: Iterable[Mapping[str, Any]] = (),
    stopped: Iterable[Mapping[str, Any]] = (),
) -> Comparison:
    """Build the comparison: scores, intervals and tests are counted from `correct`.

    Args:
        header: what the comparison is of; no `tasks`: those of the rows, as first met.
        rows: references and winners, with their select-split metrics; other report-split metrics
            (`nll/…`) are kept, those that rows are ranked by are counted from `correct`.
        correct: row name -> task -> samples on the report split (bool: right or wrong); rows that
            are not evaluated yet (a running sweep) are absent.
        failed: failed ledger entries, field by field.
        stopped: those of trials that were stopped in a race.

    Raises:
        ValueError: two rows have a different number of samples in one task.
    """
    unseen, metric = header.unseen, ranked_by(header.metric)
    tested = (with_test(row, correct.get(row.method), unseen, metric) for row in rows)
    scored = sorted(tested, key=lambda row: position(row, metric))
    names = tuple(header.tasks) or tasks_of(scored, metric)
    return Comparison(
        **{
            **vars(header),
            "tasks": names,
            "unseen": tuple(name for name in names if name in unseen),
            "versions": dict(header.versions),
        },
        rows=tuple(scored),
        pairs=paired([row.method for row in scored], correct, unseen, metric),
        failed=kept(failed, KEPT_OF_FAILED),
        stopped=kept(stopped, KEPT_OF_STOPPED),
    )


def kept(
    entries: Iterable[Mapping[str, Any]], fields: Sequence[str]
) -> tuple[Mapping[str, Any], ...]:
    """Fields of ledger entries, in the order of methods and trial keys."""
    return tuple(
        finite({name: entry[name] for name in fields})
        for entry in sorted(entries, key=lambda entry: (entry["method"], entry["trial_key"]))
    )


def with_test(
    row: Row,
    correct: Correct | None,
    unseen: Collection[str] = (),
    metric: RankedMetric = ACCURACY,
) -> Row:
    """Add scores and 95 % intervals, counted from `correct`; values become JSON's types."""
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
    each = {
        f"{metric.name}/{task}": finite(score_of(metric, kept)) for task, kept in correct.items()
    }
    means = {
        name: mean([each[f"{metric.name}/{task}"] for task in members])
        for name, members in groups_of(correct, unseen, metric).items()
    }
    ci95 = intervals(correct, unseen, metric)
    return replace(row, test={**row.test, **means, **each}, test_ci95=ci95)


def score_of(metric: RankedMetric, samples: Samples) -> float:
    """The score of one task's samples; of counted ones, right ÷ all."""
    return int(samples.sum()) / len(samples) if metric.per_sample else metric.score(samples)


def mean(values: Sequence[float | None]) -> float | None:
    """Over tasks; None where a task has no score."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def mean_of(metric: RankedMetric, metrics: Metrics) -> float | None:
    """The mean among named values: over the seen tasks, where some are unseen."""
    return metrics.get(f"{metric.name}/seen", metrics.get(f"{metric.name}/mean"))


def groups_of(
    tasks: Iterable[str], unseen: Collection[str], metric: RankedMetric = ACCURACY
) -> dict[str, list[str]]:
    """Name of each mean -> the tasks it is over."""
    names = list(tasks)
    groups = {"mean": names}
    if unseen:
        groups["seen"] = [task for task in names if task not in unseen]
        groups["unseen"] = [task for task in names if task in unseen]
    return {f"{metric.name}/{name}": members for name, members in groups.items() if members}


def intervals(
    correct: Correct, unseen: Collection[str] = (), metric: RankedMetric = ACCURACY
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the scores and their means, from task -> samples.

    Wilson's, and of means MOVER, where a sample is right or wrong on its own; else a bootstrap's,
    without those that are not defined.
    """
    groups = groups_of(correct, unseen, metric)
    single = {f"{metric.name}/{task}": [task] for task in correct}
    if metric.per_sample:
        counts = {task: (int(hits.sum()), len(hits)) for task, hits in correct.items()}
        found = {
            name: mean_interval([counts[task] for task in members])
            for name, members in groups.items()
        } | {name: wilson(*counts[task]) for name, (task,) in single.items()}
    else:
        found = {
            name: bootstrap_interval(
                bootstrap_scores([correct[task] for task in members], metric.score)
            )
            for name, members in (groups | single).items()
        }
    return {
        name: (float(low), float(high)) for name, (low, high) in found.items() if math.isfinite(low)
    }


def position(row: Row, metric: RankedMetric = ACCURACY) -> tuple[int, float, str]:
    """Sort key of a row: pretrained first, then ascending (rows without a value first), experts
    last."""
    rank = {"pretrained": 0, "experts": 2}.get(row.method, 1)
    score, sign = mean_of(metric, row.test or row.val), 1.0 if metric.larger_is_better else -1.0
    return rank, -math.inf if score is None else sign * score, row.method


def tasks_of(rows: Iterable[Row], metric: RankedMetric = ACCURACY) -> tuple[str, ...]:
    """Tasks that any row has a score for, in the order found."""
    names = dict.fromkeys(name for row in rows for name in (*row.test, *row.val))
    split_names = (name.split("/", 1) for name in names)
    return tuple(
        rest[0] for kind, *rest in split_names if kind == metric.name and rest[0] not in MEANS
    )


def paired(
    names: Sequence[str],
    correct: Mapping[str, Correct],
    unseen: Collection[str] = (),
    metric: RankedMetric = ACCURACY,
) -> tuple[Pair, ...]:
    """Test all pairs of rows that have samples, on the seen tasks that both have."""
    tests: list[Pair] = []
    drawn = Drawn(correct, metric)
    for first, second in combinations([name for name in names if correct.get(name)], 2):
        both = [task for task in correct[first] if task in correct[second]]
        shared = [task for task in both if task not in unseen]
        for task in shared:
            sizes = len(correct[first][task]), len(correct[second][task])
            if sizes[0] != sizes[1]:
                raise ValueError(f"{first}, {second}: {task}: {sizes[0]} and {sizes[1]} samples")
        if not shared:
            continue
        if metric.per_sample:
            a = np.concatenate([correct[first][task] for task in shared])
            b = np.concatenate([correct[second][task] for task in shared])
            only = int((a & ~b).sum()), int((b & ~a).sum())
            tests.append(Pair(first, second, len(a), *only, float(mcnemar(a, b)), 1.0))
        else:
            tests.append(drawn.pair(first, second, tuple(shared)))
    adjusted = holm([test.p for test in tests])
    return tuple(replace(test, p_holm=float(p)) for test, p in zip(tests, adjusted, strict=True))


class Drawn:
    """Bootstrap scores of rows, each drawn once."""

    def __init__(self, correct: Mapping[str, Correct], metric: RankedMetric) -> None:
        self.correct, self.metric = correct, metric
        self.known: dict[tuple[str, tuple[str, ...]], tuple[float, NDArray[np.float64]]] = {}

    def of(self, name: str, tasks: tuple[str, ...]) -> tuple[float, NDArray[np.float64]]:
        """A row's mean over tasks, and its resampled means."""
        if (name, tasks) not in self.known:
            samples = [self.correct[name][task] for task in tasks]
            score = math.fsum(self.metric.score(each) for each in samples) / len(samples)
            self.known[name, tasks] = score, bootstrap_scores(samples, self.metric.score)
        return self.known[name, tasks]

    def pair(self, first: str, second: str, tasks: tuple[str, ...]) -> Pair:
        """The paired bootstrap test of two rows."""
        (a, drawn_a), (b, drawn_b) = self.of(first, tasks), self.of(second, tasks)
        n = sum(len(self.correct[first][task]) for task in tasks)
        sign = 1.0 if self.metric.larger_is_better else -1.0
        p = bootstrap_test(drawn_a, drawn_b)
        return Pair(first, second, n, 0, 0, p, 1.0, finite(sign * (a - b)))


def finite(value: Any) -> Any:
    """Convert to JSON's types: numpy scalars and tuples unwrapped, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(name): finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def split(comparison: Comparison) -> str:
    """The split that the rows' scores are from."""
    tested = any(row.test for row in comparison.rows)
    return comparison.report_on if tested else comparison.select_on
