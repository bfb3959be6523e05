"""Metrics: scores of a task's rows, in which direction they are better, and how they are tested.

A name such as `acc/mean` is a metric's name and a task, or a mean over tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Samples: TypeAlias = NDArray[Any]
"""What a metric keeps of N rows: bool [N], right or wrong; or float64 [N, 2], prediction and
target."""


class Metric(Protocol):
    """A score of N rows of one task."""

    @property
    def name(self) -> str:
        """First part of the names of its values: `acc` of `acc/mean`."""

    @property
    def larger_is_better(self) -> bool:
        """Direction."""

    @property
    def ranks(self) -> bool:
        """Whether reports rank rows by it, where a sweep selects by it; else by accuracy."""

    def __call__(self, output: Tensor, targets: Tensor) -> float:
        """Score of N rows.

        Args:
            output: logits [N, C], or what else the model's head returns.
            targets: [N].
        """


class RankedMetric(Metric, Protocol):
    """A metric that reports rank rows by: it also gives samples, for intervals and tests."""

    @property
    def title(self) -> str:
        """For headings: `accuracy`."""

    @property
    def per_sample(self) -> bool:
        """Whether each row is right or wrong on its own.

        Then the score is the share of right rows: intervals are Wilson's and tests are McNemar's.
        Else (rank correlations, Matthews) both are from a paired bootstrap over rows.
        """

    def samples(self, output: Tensor, targets: Tensor) -> Samples:
        """What is kept of each row: bool [N] if `per_sample`, else float64 [N, 2]."""

    def score(self, samples: Samples) -> float:
        """The score of kept rows; NaN where it is not defined."""


@dataclass(frozen=True)
class Accuracy:
    """Share of rows whose top class is the label; the first of equal logits is the top.

    A row with a NaN or +∞ among its logits is wrong.
    """

    name: str = "acc"
    title: str = "accuracy"
    larger_is_better: bool = True
    ranks: bool = True
    per_sample: bool = True

    def samples(self, output: Tensor, targets: Tensor) -> NDArray[np.bool_]:
        """[N]: whether each row is right."""
        bad = (output.isnan() | output.isposinf()).any(dim=1)
        right: NDArray[np.bool_] = (torch.where(bad, -1, output.argmax(dim=1)) == targets).numpy()
        return right

    def score(self, samples: Samples) -> float:
        """Mean of right rows."""
        return float(samples.mean())

    def __call__(self, output: Tensor, targets: Tensor) -> float:
        """Accuracy of logits [N, C] against labels [N]."""
        return self.score(self.samples(output, targets))


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """Mean cross-entropy of the labels, in nats; NaN where a logit is."""

    name: str = "nll"
    larger_is_better: bool = False
    ranks: bool = False

    def __call__(self, output: Tensor, targets: Tensor) -> float:
        """Of logits [N, C] and labels [N].

        Losses are summed in float64, so that the mean does not depend on the batch size.
        """
        return torch.nn.functional.cross_entropy(output.double(), targets).item()


ACCURACY, NLL = Accuracy(), NegativeLogLikelihood()

METRICS: dict[str, Metric] = {metric.name: metric for metric in (ACCURACY, NLL)}
"""Metrics that every evaluation measures, by name, in the order in which they are shown."""


def metric_of(name: str) -> Metric:
    """The metric of a name such as `acc/mean`; accuracy for a name without one.

    Searches of `sweeps train` call accuracy on the select rows `select`.

    >>> metric_of("nll/digits").larger_is_better, metric_of("select").larger_is_better
    (False, True)
    """
    return METRICS.get(name.partition("/")[0], ACCURACY)


def sign_of(name: str) -> float:
    """What to multiply values of `name` by, so that larger is better: 1 or −1.

    >>> sign_of("acc/mean"), sign_of("nll/mean")
    (1.0, -1.0)
    """
    return 1.0 if metric_of(name).larger_is_better else -1.0


def ranked_by(name: str) -> RankedMetric:
    """The metric that reports rank rows by, where a sweep selects by `name`.

    >>> ranked_by("acc/mean").name, ranked_by("nll/mean").name
    ('acc', 'acc')
    """
    found: Any = metric_of(name)
    ranked: RankedMetric = found if found.ranks else ACCURACY
    return ranked


def further(output: Tensor, targets: Tensor) -> Mapping[str, Samples]:
    """Metric -> samples of N rows, of all metrics but accuracy and NLL."""
    others: dict[str, Any] = {k: each for k, each in METRICS.items() if each not in (ACCURACY, NLL)}
    return {name: metric.samples(output, targets) for name, metric in others.items()}
