"""Results of evaluations: scores of tasks, metrics, time and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actors.data.text.written_answers import NO_CLASS
from actors.experts.metrics import (
    ACCURACY,
    EXACT,
    NLL,
    OUTSIDE,
    OWN,
    RECOGNITION,
    Samples,
    further,
    own_samples,
    paired,
    ranked_by,
    top_class,
)

if TYPE_CHECKING:  # the dispatcher unpickles results, and imports this file; it needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class TaskScore:
    """One task's result on N rows."""

    correct: NDArray[np.bool_]
    """[N]: whether the top class is the label; the first of equal logits is the top."""
    nll: float
    """Mean negative log-likelihood over the N rows, in nats."""
    further: Mapping[str, Samples] = field(default_factory=dict)
    """Samples of other metrics, by name; see `metrics.py`."""
    metric: str = ACCURACY.name
    """The task's own metric."""
    outside: float | None = None
    """Share of rows whose written text is none of the answers; None: nothing is written."""
    predicted: NDArray[np.int32] | None = None
    """[N]: the top class of each row; −1: a row with a NaN or +∞."""
    recognition: float | None = None
    """Share of rows for which a gate's largest weight is that of the task's own expert; None: of
    other methods, and of tasks without an expert."""

    @property
    def accuracy(self) -> float:
        """Fraction of correct rows."""
        return ACCURACY.score(self.correct)

    def values(self) -> dict[str, float]:
        """Metric -> score."""
        ranked = {name: ranked_by(name).score(each) for name, each in self.further.items()}
        shares = {OUTSIDE: self.outside, RECOGNITION: self.recognition}
        known = {name: share for name, share in shares.items() if share is not None}
        return {ACCURACY.name: self.accuracy, NLL.name: self.nll, **ranked, **known}

    def samples(self, metric: str) -> Samples:
        """Samples of a metric that can rank results."""
        if metric == OWN.name:
            return own_samples(self.metric, self.samples(self.metric))
        return self.correct if metric == ACCURACY.name else self.further[metric]

    def measures(self, metric: str) -> bool:
        """Whether a metric that ranks rows is measured for this task."""
        return metric in (ACCURACY.name, OWN.name, *self.further)


@dataclass(frozen=True)
class Evaluation:
    """Result and cost of one evaluation."""

    scores: Mapping[str, TaskScore]
    seconds: float
    peak_bytes: int
    """Peak memory during the evaluation: resident, or allocated on a GPU. For a sharded model, that
    of its largest shard; for a method that learns, its training is included. See `peak_memory.py`
    for concurrent calls."""
    unseen: frozenset[str] = frozenset()
    """The sweep's tasks without an expert, evaluated here or not."""
    own: bool = False
    """Whether a task of the sweep names a metric of its own; then `score` is measured too."""

    def metrics(self) -> dict[str, float]:
        """`acc/<task>`, `nll/<task>` and their unweighted means over tasks.

        Of models that write answers also `exact/…` and `outside/…`, the share of texts that are
        none of the answers. Of gates also `recognition/…`, the share of rows for which the largest
        weight is that of the task's own expert. Also the metrics that tasks name, and if any names
        one, `score/<task>` and its means: each task by its own metric.

        With unseen tasks also the means `acc/seen` and `acc/unseen`, if tasks of the kind were
        evaluated.
        """
        found: dict[str, float] = {}
        if not self.scores:
            return found
        values = {task: score.values() for task, score in self.scores.items()}
        if self.own:
            for task, score in self.scores.items():
                values[task][OWN.name] = values[task][score.metric]
        for kind in dict.fromkeys(name for each in values.values() for name in each):
            each = {task: score[kind] for task, score in values.items() if kind in score}
            found |= {f"{kind}/{task}": value for task, value in each.items()}
            found[f"{kind}/mean"] = float(np.mean(list(each.values())))
            if not self.unseen:
                continue
            for group, members in (
                ("seen", each.keys() - self.unseen),
                ("unseen", each.keys() & self.unseen),
            ):
                if members:
                    chosen = [value for task, value in each.items() if task in members]
                    found[f"{kind}/{group}"] = float(np.mean(chosen))
        return found

    def samples(self, metric: str) -> dict[str, Samples]:
        """Task -> samples of a metric that ranks rows, for the tasks that it is measured for."""
        return {
            task: score.samples(metric)
            for task, score in self.scores.items()
            if score.measures(metric)
        }

    def plain(self) -> dict[str, Any]:
        """Plain values for a ledger entry: metrics, samples of tasks, seconds, peak memory."""
        return {
            "metrics": self.metrics(),
            "n": {task: len(score.correct) for task, score in self.scores.items()},
            "trial_s": self.seconds,
            "peak_bytes": self.peak_bytes,
        }


@dataclass(frozen=True)
class Timing:
    """Times of a recipe, in seconds."""

    merge_s: float | None
    """To make the weights; None: the recipe makes none, or makes them input by input."""
    input_s: float
    """A single input's share of the batch."""
    rows: int
    """Rows of the batch."""


def score(
    z: Tensor,
    labels: Tensor,
    metric: str = ACCURACY.name,
    values: tuple[float, ...] | None = None,
    written: Tensor | None = None,
    recognised: Tensor | None = None,
) -> TaskScore:
    """Score logits [N, C] against labels [N]; a row with a NaN or +∞ is wrong, its loss NaN.

    Args:
        z: logits [N, C].
        labels: int64 [N].
        metric: the task's own.
        values: class -> the number it means, for correlations; None: the class's own.
        written: int64 [N], of a model that writes answers; gives exact match beside accuracy.
        recognised: bool [N], of a gate: whether the task's own expert has the largest weight.
    """
    others, outside = dict(further(z, labels)), None
    if written is not None:
        others[EXACT.name] = EXACT.samples(written, labels)
        outside = (written == NO_CLASS).double().mean().item()
    if metric != ACCURACY.name:
        others[metric] = paired(metric, values).samples(z, labels)
    predicted = top_class(z).numpy().astype(np.int32)
    recognition = None if recognised is None else recognised.double().mean().item()
    return TaskScore(
        ACCURACY.samples(z, labels), NLL(z, labels), others, metric, outside, predicted, recognition
    )
