"""Raced evaluation: chunk by chunk, until all rows are evaluated or the candidate cannot win.

`fusion.analysis.racing` has the bounds. The order of the rows is the same for all candidates, and
it does not depend on their results. So a candidate that is evaluated on all rows has the same
numbers in every run, whatever it was compared with.

* Without a confidence, the bound is certain for any order, and the hardest rows come first: there
  are few wrong rows that the bar allows, and a worse candidate has used them up soon. Difficulty is
  1 minus the experts' mean probability of the label; their outputs are cached for other rows of the
  comparison anyway.
* With a confidence, rows are in random order, and a chunk has as many rows of each task.

Rows of several tasks share a forward pass. Other batches than those of an evaluation without racing
change the last bits of logits, so one sweep does not have both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.artifacts.recipe import Recipe
from actors.data.task_rows import BATCH
from actors.experts.metrics import ACCURACY
from actors.experts.model_runner import ModelRunner, Predicted, completed
from actors.experts.prediction.predict import Predictions, model_weights
from actors.experts.statistics import normed
from actors.shards.messages import Batch, Weights
from fusion.analysis.racing import beaten, ceiling

CHUNKS = 16
"""Chunks that the rows are divided into, at least; more where a chunk has `BATCH` rows."""

LEAST = 32
"""Rows a chunk at least, unless there are fewer: smaller products are slower a row."""

Chunk = Sequence[tuple[str, NDArray[np.int64]]]
"""(task, rows of its role) of one forward pass."""


@dataclass(frozen=True)
class Terms:
    """What a candidate is raced against."""

    metric: str
    """`acc/mean`, `acc/seen` or `acc/<task>`."""
    bar: float | None = None
    """The best value of a candidate that was evaluated on all rows; None: of none so far."""
    confidence: float | None = None
    """Probability with which the best candidate is not stopped; None: it is never stopped."""
    seed: int = 0
    """Of the random order of rows, with a confidence."""


@dataclass
class Standing:
    """Right rows of a candidate so far."""

    sizes: Mapping[str, int]
    """Task of the metric -> its rows."""
    right: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    others: int = 0
    """Evaluated rows of tasks that are not in the metric."""

    def __post_init__(self) -> None:
        self.right, self.seen = dict.fromkeys(self.sizes, 0), dict.fromkeys(self.sizes, 0)

    def add(self, task: str, right: int, rows: int) -> None:
        """Count the rows of a chunk."""
        if task not in self.sizes:
            self.others += rows
            return
        self.right[task] += right
        self.seen[task] += rows

    @property
    def rows(self) -> int:
        """Evaluated rows."""
        return sum(self.seen.values()) + self.others

    @property
    def at_most(self) -> float:
        """The highest value of the metric that can still be reached."""
        return ceiling(self.right, self.seen, self.sizes)


def race(
    runner: ModelRunner, recipe: Recipe, names: Sequence[str], role: str, terms: Terms
) -> tuple[Predictions | None, Standing]:
    """Evaluate a single model until it has no rows left, or is worse than the bar.

    With several shards, chunks are sent ahead of the results: then a few more rows are computed
    than the standing counts.

    Args:
        runner: the model, and the rows.
        recipe: of a method that makes one model and does not learn.
        names: tasks to evaluate.
        role: of the rows.
        terms: the bar.

    Returns:
        Task -> predictions for all of its rows, and the standing. No predictions: it was stopped.

    Raises:
        InputError: an unknown method or parameter, or a method without a single model.
    """
    counted = tasks_of(terms.metric, names, runner)
    standing = Standing({name: runner.size(name, role) for name in counted})
    order = ordered(runner, names, role, terms, counted)
    looks = max(1, sum(any(task in standing.sizes for task, _ in chunk) for chunk in order))
    risk = (1 - terms.confidence) / looks if terms.confidence else 0.0
    parts: dict[str, list[tuple[NDArray[np.int64], Predicted]]] = {name: [] for name in names}
    with runner.filling:
        weights = normed(runner, model_weights(runner, recipe), recipe)
        for chunk, output in zip(order, outputs(runner, weights, order, role), strict=True):
            at = 0
            for task, rows in chunk:
                found = runner.read(task, output[at : at + len(rows)])
                at += len(rows)
                parts[task].append((rows, found))
                right = ACCURACY.samples(found.logits, runner.labels(task, role)[rows])
                standing.add(task, int(right.sum()), len(rows))
            if terms.bar is not None and beaten(
                standing.right, standing.seen, standing.sizes, terms.bar, risk
            ):
                return None, standing

        def embed(given: Iterable[tuple[Tensor | slice, Batch]]) -> Iterator[Tensor]:
            return runner.pipeline.embed(weights, (batch for _, batch in given))

        return {
            name: completed(runner, name, role, in_order(parts[name]), embed) for name in names
        }, standing


def outputs(
    runner: ModelRunner, weights: Weights, order: Sequence[Chunk], role: str
) -> Iterator[Tensor]:
    """Outputs of each chunk; of a single shard not before they are asked for."""
    given = (mixed(runner, chunk, role) for chunk in order)
    if len(runner.pipeline.shards) > 1:
        return runner.pipeline.embed(weights, given)
    return chain.from_iterable(runner.pipeline.embed(weights, [batch]) for batch in given)


def mixed(runner: ModelRunner, chunk: Chunk, role: str) -> Batch:
    """A batch of rows of several tasks."""
    each = [runner.batch(task, role, torch.from_numpy(rows)) for task, rows in chunk]
    return Batch(tuple(part for batch in each for part in batch.parts), precision=each[0].precision)


def in_order(parts: Sequence[tuple[NDArray[np.int64], Predicted]]) -> Predicted:
    """Predictions of parts of a task's rows, in the order of the rows."""
    back = torch.from_numpy(np.concatenate([rows for rows, _ in parts])).argsort()
    written = [found.written for _, found in parts if found.written is not None]
    logits = torch.cat([found.logits for _, found in parts])[back]
    return Predicted(logits, torch.cat(written)[back] if written else None)


def tasks_of(metric: str, names: Sequence[str], runner: ModelRunner) -> list[str]:
    """The tasks whose accuracies a metric is the mean of."""
    _, _, what = metric.partition("/")
    if what == "seen":
        return [name for name in names if not runner.data[name].unseen]
    return list(names) if what == "mean" else [what]


def ordered(
    runner: ModelRunner, names: Sequence[str], role: str, terms: Terms, counted: Sequence[str]
) -> list[Chunk]:
    """The chunks in which rows are evaluated; computed once for a role and an order."""
    key = (role, terms.metric, terms.confidence is None, terms.seed)
    if key not in runner.orders:
        sizes = {name: runner.size(name, role) for name in names}
        size = min(BATCH, max(LEAST, sum(sizes.values()) // CHUNKS))
        inside = [name for name in names if name in counted]
        if terms.confidence is None:
            chunks = hardest_first({name: difficulty(runner, name, role) for name in inside}, size)
        else:
            chunks = at_random({name: sizes[name] for name in inside}, size, terms.seed)
        rest = {name: sizes[name] for name in names if name not in counted}
        runner.orders[key] = [*chunks, *at_random(rest, size, terms.seed)]
    return runner.orders[key]


def difficulty(runner: ModelRunner, task: str, role: str) -> NDArray[np.float64]:
    """[N]: 1 minus the mean probability of the label by all experts; a NaN counts as 1."""
    labels = runner.labels(task, role)[:, None]
    each = [
        runner.logits_of(expert, task, role).double().softmax(1).gather(1, labels)[:, 0]
        for expert in runner.tasks
    ]
    found: NDArray[np.float64] = torch.stack(each).mean(0).nan_to_num(0.0).numpy()
    return 1 - found


def hardest_first(difficulties: Mapping[str, NDArray[np.float64]], size: int) -> list[Chunk]:
    """Chunks of rows of all tasks, those first whose error is likely and costs most.

    An error of a task with N rows costs 1/N of its accuracy.

    >>> chunks = hardest_first({"a": np.array([0.1, 0.9]), "b": np.array([0.8])}, 2)
    >>> [[(task, rows.tolist()) for task, rows in chunk] for chunk in chunks]
    [[('a', [1]), ('b', [0])], [('a', [0])]]
    """
    tasks = np.concatenate([np.full(len(each), i) for i, each in enumerate(difficulties.values())])
    rows = np.concatenate([np.arange(len(each)) for each in difficulties.values()])
    cost = np.concatenate([each / len(each) for each in difficulties.values()])
    order, names = np.argsort(-cost, kind="stable"), list(difficulties)
    found: list[Chunk] = []
    for start in range(0, len(order), size):
        at = order[start : start + size]
        chunk = [(name, np.sort(rows[at[tasks[at] == i]])) for i, name in enumerate(names)]
        found.append([(name, part) for name, part in chunk if len(part)])
    return found


def at_random(sizes: Mapping[str, int], size: int, seed: int) -> list[Chunk]:
    """Chunks of rows in random order, each with as many rows of each task that has more.

    >>> chunks = at_random({"a": 3, "b": 1}, 2, 0)
    >>> [[(task, len(rows)) for task, rows in chunk] for chunk in chunks]
    [[('a', 1), ('b', 1)], [('a', 1)], [('a', 1)]]
    """
    draw = np.random.default_rng(seed)
    orders = {name: draw.permutation(count) for name, count in sizes.items()}
    step = max(1, size // max(1, len(sizes)))
    return [
        [(name, part) for name, each in orders.items() if len(part := each[start : start + step])]
        for start in range(0, max(sizes.values(), default=0), step)
    ]
