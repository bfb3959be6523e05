"""Time of a recipe's model: of making its weights, and of one input.

Both are measured on one fixed batch, alone in this process, with no cache of outputs, so that they
can be compared between methods. Models that several share in memory (an ensemble's experts) take
turns in the one resident model here; the time of exchanging them is not counted.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.artifacts.recipe import BASE, Recipe
from actors.data.task_rows import SAMPLES
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.evaluation import Timing
from actors.experts.model_runner import ModelRunner, completed
from actors.experts.prediction.predict import model_weights, predict
from actors.experts.unseen_tasks import measured
from actors.shards.messages import Batch, Weights, for_task
from fusion.merged_layers.precision import Precision
from fusion.registry import METHODS
from fusion.task_vectors.coding import one_hot

ROWS = SAMPLES
"""Rows of the batch: the first of the first task that the recipe is measured on."""

REPEATS = 3
"""Passes that are timed; the fastest counts. After a pass of a second or more, no further one."""


@dataclass(frozen=True)
class RecordingCache(EmbeddingCache):
    """An embedding cache that notes whose outputs were read."""

    read: set[str] = field(default_factory=set)

    def get(
        self,
        expert: str,
        file: Path,
        indices: NDArray[np.int64] | None,
        make: Callable[[], Tensor],
        precision: Precision = "fp32",
    ) -> Tensor:
        """See `EmbeddingCache.get`."""
        self.read.add(expert)
        return super().get(expert, file, indices, make, precision)


def timed(runner: ModelRunner, recipe: Recipe, role: str) -> Timing:
    """Measure a recipe on a batch of a role's rows; changes nothing but the resident weights.

    Raises:
        InputError: see `predict`.
    """
    names = measured(runner.data, runner.tasks, recipe.method, recipe.params, role)
    with tempfile.TemporaryDirectory(prefix="timing-") as folder:
        cache = RecordingCache(Path(folder), runner.embeddings.identity)
        small = narrowed(runner, names[0], role, cache)
        method = METHODS.get(recipe.method)
        if recipe.method == "experts":
            weights = runner.pipeline.weights(coding=one_hot(runner.tasks, names[0]), own=True)
            return replace(merged(small, lambda: weights, names[0], role), merge_s=None)
        if method is None:
            found = merged(small, lambda: model_weights(runner, recipe), names[0], role)
            return replace(found, merge_s=None)
        if method.output == "one_model":
            return merged(small, lambda: model_weights(runner, recipe), names[0], role)
        if method.output == "model_per_task":

            def of_task() -> Weights:
                return for_task(runner.pipeline.weights(recipe.method, recipe.params), names[0])

            return merged(small, of_task, names[0], role)
        if of := method.merged_by(recipe.params):  # a module's product is not measured
            ((other, its),) = of.items()
            return merged(small, lambda: runner.pipeline.weights(other, its), names[0], role)
        return unmerged(small, recipe, names[0], role, cache)


def narrowed(runner: ModelRunner, task: str, role: str, cache: EmbeddingCache) -> ModelRunner:
    """A runner over the same shards, with the first rows of one task alone."""
    data, rows = runner.data[task], runner.data[task].rows[role]
    every = np.arange(runner.size(task, role)) if rows.indices is None else rows.indices
    few = replace(data, rows={role: replace(rows, indices=every[:ROWS])})
    small = ModelRunner(
        runner.pipeline,
        runner.tasks,
        {task: few},
        cache,
        runner.device,
        runner.references,
        runner.precisions,
    )
    small.filling, small.norms = runner.filling, runner.norms
    return small


def merged(runner: ModelRunner, make: Callable[[], Weights], task: str, role: str) -> Timing:
    """Times of one model: the merge is run once, with a pass of a single row."""
    size = runner.size(task, role)
    with runner.filling:
        start = time.perf_counter()
        weights = runner.of_member(make(), BASE)  # the values of statistics change no time
        first = runner.batch(task, role, slice(0, 1))
        list(runner.pipeline.embed(weights, [first]))
        took = time.perf_counter() - start

        def passed() -> None:
            one_pass(runner, weights, task, role)

        batch_s = fastest(passed)
    return Timing(max(0.0, took - batch_s / size), batch_s / size, size)


def unmerged(
    runner: ModelRunner, recipe: Recipe, task: str, role: str, cache: RecordingCache
) -> Timing:
    """Times of what makes no weights beforehand: the models whose outputs it reads, one after the
    other, and what it does with them."""
    predict(runner, recipe, [task], role)  # fills the cache, and tells whose outputs are read
    read = sum(fastest_of(runner, expert, task, role) for expert in sorted(cache.read))
    rest = fastest(lambda: predict(runner, recipe, [task], role))
    size = runner.size(task, role)
    return Timing(None, (read + rest) / size, size)


def fastest_of(runner: ModelRunner, expert: str, task: str, role: str) -> float:
    """Seconds in which one expert, or the base, embeds the batch."""
    coding = torch.zeros(1, len(runner.tasks), 1)
    coding = coding if expert == BASE else one_hot(runner.tasks, expert)
    weights = runner.of_member(runner.pipeline.weights(coding=coding, own=True), expert)
    with runner.filling:
        list(runner.pipeline.embed(weights, [runner.batch(task, role, slice(0, 1))]))
        return fastest(lambda: embedded(runner, weights, task, role))


def embedded(runner: ModelRunner, weights: Weights, task: str, role: str) -> None:
    """Run the batch through one model."""
    cuts = runner.cuts(task, role)
    list(runner.pipeline.embed(weights, (runner.batch(task, role, part) for part in cuts.parts)))


def one_pass(runner: ModelRunner, weights: Weights, task: str, role: str) -> None:
    """Predict the batch with one model: outputs, head, and what a text model writes."""
    cuts = runner.cuts(task, role)
    given = (runner.batch(task, role, part) for part in cuts.parts)
    found = runner.headed(task, runner.pipeline.embed(weights, given), cuts)

    def embed(batches: Iterable[tuple[Tensor | slice, Batch]]) -> Iterator[Tensor]:
        return runner.pipeline.embed(weights, (batch for _, batch in batches))

    completed(runner, task, role, found, embed)


def fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        if best >= 1:
            break
    return best
