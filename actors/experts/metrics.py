"""Metrics: scores of a task's rows, in which direction they are better, and how they are tested.

A name such as `acc/mean` is a metric's name and a task, or a mean over tasks. Accuracy and NLL are
measured for every task. A task may name another metric, which is then measured for it too; `score`
is the metric that each task names, and `score/mean` their mean over tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the dispatcher unpickles results, and imports this file; it needs no torch
    from torch import Tensor

Samples: TypeAlias = NDArray[Any]
"""What a metric keeps of N rows: bool [N], right or wrong; or float64 [N, 2], prediction and
target; or of `score` float64 [N, 3], with the number of the task's own metric."""


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


def top_class(output: Tensor) -> Tensor:
    """int64 [N]: the top class of each row of logits [N, C]; −1 of a row with a NaN or +∞."""
    bad = (output.isnan() | output.isposinf()).any(dim=1)
    return output.argmax(dim=1).masked_fill(bad, -1)


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
        right: NDArray[np.bool_] = (top_class(output) == targets).numpy()
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
        from torch.nn.functional import cross_entropy  # see above

        return cross_entropy(output.double(), targets).item()


@dataclass(frozen=True)
class Paired(ABC):
    """A metric of a set of rows, from each row's predicted class and its label.

    A row with a NaN or +∞ among its logits has no prediction (NaN), and the set no score.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    larger_is_better: ClassVar[bool] = True
    ranks: ClassVar[bool] = True
    per_sample: ClassVar[bool] = False
    numbers: ClassVar[bool] = False
    """Whether classes are numbers."""
    values: tuple[float, ...] | None = None
    """Class -> the number it means; None: the class's own."""

    def samples(self, output: Tensor, targets: Tensor) -> NDArray[np.float64]:
        """[N, 2]: prediction and label, as `values` where classes are numbers."""
        bad = (output.isnan() | output.isposinf()).any(dim=1)
        found = np.stack([output.argmax(dim=1).numpy(), targets.numpy()], axis=1)
        pairs = found.astype(np.float64)
        if self.values is not None:
            pairs = np.array(self.values, np.float64)[found]
        pairs[bad.numpy(), 0] = np.nan
        return pairs

    def score(self, samples: Samples) -> float:
        """The score of kept rows; NaN where it is not defined."""
        if not np.isfinite(samples).all():
            return float("nan")
        return self.of(samples[:, 0], samples[:, 1])

    @abstractmethod
    def of(self, predicted: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
        """The score of N predictions."""

    def __call__(self, output: Tensor, targets: Tensor) -> float:
        """The score of logits [N, C] against labels [N]."""
        return self.score(self.samples(output, targets))


class Matthews(Paired):
    """Matthews' correlation coefficient; of more than two classes Gorodkin's R_K (2004, eq. 8).

    0 where all predictions, or all labels, are one class, as in scikit-learn.
    """

    name = "matthews"
    title = "Matthews correlation"

    def of(self, predicted: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
        """From the counts of the confusion matrix."""
        p, t = predicted.astype(np.int64), targets.astype(np.int64)
        classes = int(max(p.max(), t.max())) + 1
        table = np.bincount(p * classes + t, minlength=classes**2).reshape(classes, classes)
        total, right = int(table.sum()), int(np.trace(table))
        guessed, there = table.sum(axis=1).astype(float), table.sum(axis=0).astype(float)
        spread = (total**2 - guessed @ guessed) * (total**2 - there @ there)
        return float((right * total - guessed @ there) / np.sqrt(spread)) if spread > 0 else 0.0


class F1(Paired):
    """F1 of class 1 among two: 2·TP / (2·TP + FP + FN); 0 where class 1 never occurs."""

    name = "f1"
    title = "F1"

    def of(self, predicted: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
        """From the counts of class 1."""
        found, there = predicted == 1, targets == 1
        counted = int(found.sum() + there.sum())
        return 2 * int((found & there).sum()) / counted if counted else 0.0


class Pearson(Paired):
    """Pearson's correlation of the predicted and the target value."""

    name = "pearson"
    title = "Pearson correlation"
    numbers = True

    def of(self, predicted: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
        """NaN where either side is constant."""
        x, y = predicted - predicted.mean(), targets - targets.mean()
        spread = float(np.sqrt((x @ x) * (y @ y)))
        return float(x @ y) / spread if spread > 0 else float("nan")


class Spearman(Pearson):
    """Spearman's rank correlation of the predicted and the target value; ties share their rank."""

    name = "spearman"
    title = "Spearman correlation"

    def of(self, predicted: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
        """Pearson's correlation of the ranks."""
        from scipy.stats import rankdata  # late: SciPy's statistics take a second to load

        return super().of(rankdata(predicted), rankdata(targets))


@dataclass(frozen=True)
class ExactMatch(Accuracy):
    """Share of rows for which greedy decoding writes the label's answer and ends.

    Below chance, the model writes text that is none of the answers; accuracy ranks answers alone.
    """

    name: str = "exact"
    title: str = "exact match"

    def samples(self, output: Tensor, targets: Tensor) -> NDArray[np.bool_]:
        """[N]: whether each row is right, of written classes [N] and labels [N]."""
        right: NDArray[np.bool_] = (output == targets).numpy()
        return right


ACCURACY, NLL, EXACT = Accuracy(), NegativeLogLikelihood(), ExactMatch()

OUTSIDE = "outside"
"""First part of the names of shares of rows whose written text is none of the answers."""

RECOGNITION = "recognition"
"""First part of the names of shares of rows for which a gate's largest weight is that of the task's
own expert."""

METRICS: dict[str, Metric] = {metric.name: metric for metric in (ACCURACY, NLL)}
"""Metrics that every evaluation measures, by name, in the order in which they are shown."""

PAIRED: dict[str, Paired] = {m.name: m for m in (Matthews(), F1(), Pearson(), Spearman())}
"""Metrics that are measured for the tasks that name them."""

TASK_METRICS = (ACCURACY.name, *PAIRED)
"""Metrics that a task may name, by their number in samples of `score`."""


@dataclass(frozen=True)
class OwnMetric:
    """The metric that each task names; it joins tasks of different metrics in one mean."""

    name: str = "score"
    title: str = "score"
    larger_is_better: bool = True
    ranks: bool = True
    per_sample: bool = False

    def samples(self, output: Tensor, targets: Tensor) -> Samples:
        """Of a task that names none: accuracy's. See `own_samples`."""
        return own_samples(ACCURACY.name, ACCURACY.samples(output, targets))

    def score(self, samples: Samples) -> float:
        """By the metric whose number the samples hold."""
        if not len(samples):
            return float("nan")
        name = TASK_METRICS[int(samples[0, 2])]
        return (
            float(samples[:, 0].mean())
            if name == ACCURACY.name
            else PAIRED[name].score(samples[:, :2])
        )

    def __call__(self, output: Tensor, targets: Tensor) -> float:
        """Accuracy."""
        return ACCURACY(output, targets)


OWN = OwnMetric()


def own_samples(metric: str, samples: Samples) -> NDArray[np.float64]:
    """Samples [N, 3] of `score`, from those of the task's own metric."""
    pairs = samples if samples.ndim == 2 else np.stack([samples, np.ones(len(samples))], axis=1)
    number = np.full((len(pairs), 1), float(TASK_METRICS.index(metric)))
    return np.concatenate([pairs.astype(np.float64), number], axis=1)


def paired(name: str, values: tuple[float, ...] | None) -> Paired:
    """The metric of a task whose classes mean these values."""
    found = PAIRED[name]
    return replace(found, values=values) if found.numbers else found


def metric_of(name: str) -> Metric:
    """The metric of a name such as `acc/mean`; accuracy for a name without one.

    Searches of `sweeps train` call accuracy on the select rows `select`.

    >>> metric_of("nll/digits").larger_is_better, metric_of("select").larger_is_better
    (False, True)
    """
    kind = name.partition("/")[0]
    others: dict[str, Metric] = {**PAIRED, OWN.name: OWN, EXACT.name: EXACT}
    return METRICS.get(kind) or others.get(kind, ACCURACY)


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
