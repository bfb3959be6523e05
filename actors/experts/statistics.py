"""Compute statistics of each expert on its own task's rows, once, over a pipeline of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.artifacts.recipe import BASE, Recipe
from actors.data.task_rows import batches
from actors.experts.model_runner import ModelRunner
from actors.experts.unseen_tasks import adapted_role, learners
from actors.files.hashes import hash_text
from actors.pool.running import averaged
from actors.shards.messages import Batch, Weights
from actors.shards.pipeline import Pipeline
from actors.shards.requests import (
    AdvancePrefix,
    FisherBackward,
    FisherFinish,
    FisherForward,
    GramForward,
    MissingStatistics,
    ShardRequest,
    WriteStatistics,
)
from fusion.errors import InputError
from fusion.logits.head import Head, LinearHead
from fusion.methods.statistics.collect import StatisticsRequest
from fusion.registry import METHODS, StatisticsBased
from fusion.task_vectors.coding import one_hot, selected_expert

VERSION = "statistics-2"
"""Increased when a change of this code changes statistics."""

ROLE = "fit"
"""Role of the rows; their shifted versions if the sweep adapts on shifted images."""


def compute_statistics(
    runner: ModelRunner, method: str, params: Mapping[str, Any]
) -> tuple[str, ...]:
    """Compute the statistics of all experts to files, and return their keys.

    Raises:
        InputError: wrong parameters; an expert without a task of its name, or without fit rows.
        Forgotten: a shard died. A repeated call (the dispatcher makes it,
            `actors/fleet/dispatcher.py`) continues with the expert that was being processed.
    """
    row = METHODS[method]
    assert isinstance(row, StatisticsBased)
    bound = row.bound(params)
    asked = row.statistics_request(params)
    rows = {task: drawn(runner, method, task, asked) for task in runner.tasks}
    keys = keys_of(runner, asked, rows)
    with runner.filling:
        missing = lacking(runner.pipeline, keys)
        if missing and asked.kind == "prefix_gram":
            advance(runner, method, bound, asked, keys, rows)
        elif missing:
            for task, key in zip(runner.tasks, keys, strict=True):
                if key not in missing:
                    continue
                if asked.kind in ("gram", "norm_gram"):
                    observe(runner, task, key, asked, rows[task])
                else:
                    probe(runner, task, key, asked, rows[task])
    return keys


def drawn(
    runner: ModelRunner, method: str, task: str, asked: StatisticsRequest
) -> NDArray[np.int64]:
    """Draw the fit rows of a task to be used, in order; depends only on seed and task.

    Raises:
        InputError: the task has no fit rows.
    """
    data = runner.data.get(task)
    if data is None:
        tasks = ", ".join(runner.data)
        raise InputError(
            f"{method}: expert {task!r}: no task of its name to take statistics of (tasks: {tasks})"
        )
    role = adapted_role(runner.data, ROLE)
    size = runner.size(task, role) if role in data.rows else 0
    if not size:
        raise InputError(f"{method}: task {task!r}: no {ROLE} rows; at least 1 needed")
    seed = int(hash_text(asked.seed, task), 16)
    order = np.random.default_rng(seed).permutation(size)
    return order[: asked.examples].astype(np.int64)


def keys_of(
    runner: ModelRunner, asked: StatisticsRequest, rows: Mapping[str, NDArray[np.int64]]
) -> tuple[str, ...]:
    """Hash of everything that each expert's statistics depend on."""
    identity = runner.embeddings.identity

    def facts(task: str) -> list[Any]:
        at = runner.data[task].rows[adapted_role(runner.data, ROLE)]
        there = [] if at.indices is None else at.indices[rows[task]].tolist()
        said = [identity[task], at.file.name, there or rows[task].tolist()]
        if asked.kind == "fisher":
            said.append(hash_text(runner.heads[task].tolist()))
            said += [hash_text(each.tolist()) for each in beside_weight(runner.task_heads[task])]
        return said

    asks = [VERSION, asked.kind, asked.batch_size, asked.seed, dict(asked.options)]
    if asked.kind != "prefix_gram":
        return tuple(hash_text(asks, facts(task)) for task in runner.tasks)
    every = [identity[BASE], [[task, facts(task)] for task in runner.tasks]]
    return tuple(hash_text(asks, every, task) for task in runner.tasks)


def beside_weight(head: Head | None) -> list[Tensor]:
    """Tensors of a linear head beside its weight: its bias, and the layer before it."""
    if not isinstance(head, LinearHead):
        return []
    before = head.before
    found = [head.bias, *([] if before is None else [before.weight, before.bias])]
    return [each for each in found if each is not None]


# ------------------------------------------------------- running statistics of batch norm

NORM_ROWS, NORM_BATCH = 10_240, 256
"""Fit rows that running statistics are measured on, of all tasks together, at most; rows of a
batch, at most. Default: 10 000 images at least where there are as many (Izmailov et al. 2018)."""

KEPT = 32
"""Merged models whose running statistics are kept."""


def normed(runner: ModelRunner, weights: Weights, recipe: Recipe) -> Weights:
    """Weights of a recipe's model with the running statistics of its batch norm, if it has any.

    A model that is a member of the pool, or a finished one, has its own. Those of a merged model
    are measured on unlabelled fit rows: of all tasks, or of one task's model on those of that task.
    By the policy `average` they are averaged, see `averaged`.

    Raises:
        InputError: no fit rows to measure them on.
        Forgotten: a shard died; the call is repeated.
    """
    norms = runner.norms
    if not norms.members:
        return weights
    if (member := member_of(runner, weights, recipe)) is not None:
        return runner.of_member(weights, member)
    learned = None if recipe.learned is None else hashlib.sha256(recipe.learned).hexdigest()
    key = hash_text(recipe.method, dict(recipe.params), learned, recipe.task)
    if key not in runner.measured:
        if norms.policy == "average":
            given = weights.coding, weights.method, dict(weights.params or {})
            runner.measured[key] = averaged(norms, runner.tasks, *given)
        else:
            rows = norm_batches(runner, recipe.task)
            runner.measured[key] = runner.pipeline.measure_running(weights, rows)
    runner.measured.move_to_end(key)
    while len(runner.measured) > KEPT:
        runner.measured.popitem(last=False)
    return runner.with_running(weights, runner.measured[key])


def member_of(runner: ModelRunner, weights: Weights, recipe: Recipe) -> str | None:
    """The member or reference that a recipe's model is; None: it is merged."""
    if recipe.method == BASE or recipe.method in runner.references:
        return recipe.method
    if weights.coding is None or not weights.trim.nothing:
        return None
    expert = selected_expert(weights.coding)
    return None if expert is None else runner.tasks[expert]


def norm_batches(runner: ModelRunner, task: str | None) -> list[Batch]:
    """Batches of fit rows for running statistics, each of rows of all tasks, or of one task alone.

    Tasks have equal numbers of rows, as far as they have them. The draw depends on the tasks' names
    alone.

    Raises:
        InputError: fewer than two rows.
    """
    role = adapted_role(runner.data, ROLE)
    seen = learners(runner.data)
    names = [name for name in seen if role in seen[name].rows and task in (None, name)]
    drawn = {}
    for name in names:
        order = np.random.default_rng(int(hash_text(VERSION, name), 16))
        rows = order.permutation(runner.size(name, role))
        drawn[name] = rows[: max(2, NORM_ROWS // len(names))]
    total = sum(len(rows) for rows in drawn.values())
    if total < 2:
        what = f"task {task!r}" if task else "the tasks"
        raise InputError(
            f"batch_norm: 'reestimate': {what}: {total} {ROLE} rows; 2 at least needed, or"
            " batch_norm: average"
        )
    count = -(-total // NORM_BATCH)
    parts = {name: np.array_split(rows, count) for name, rows in drawn.items()}
    made = []
    for at in range(count):
        each = {name: cut[at] for name, cut in parts.items() if len(cut[at])}
        batches = [runner.batch(name, role, torch.from_numpy(rows)) for name, rows in each.items()]
        made.append(Batch(tuple(part for batch in batches for part in batch.parts)))
    return made


def everywhere(pipeline: Pipeline, request: ShardRequest) -> list[Any]:
    """Send a request to all shards, then wait for all results."""
    asked = [pipeline.link.call(shard, request) for shard in pipeline.shards]
    return [pipeline.link.get(each) for each in asked]


def lacking(pipeline: Pipeline, keys: Sequence[str]) -> set[str]:
    """Keys whose files are missing in some shard."""
    return {key for part in everywhere(pipeline, MissingStatistics(list(keys))) for key in part}


def cut(runner: ModelRunner, task: str, rows: NDArray[np.int64], size: int) -> list[Batch]:
    """Split rows of a task into batches."""
    at = torch.from_numpy(rows)
    role = adapted_role(runner.data, ROLE)
    return [runner.batch(task, role, at[part]) for part in batches(len(rows), size)]


def observe(
    runner: ModelRunner, task: str, key: str, asked: StatisticsRequest, rows: NDArray[np.int64]
) -> None:
    """Compute the Gram matrices of one expert on rows of its task."""
    weights = Weights(key, coding=one_hot(runner.tasks, task), own=True)
    given, norms = cut(runner, task, rows, asked.batch_size), asked.kind == "norm_gram"
    for i, batch in enumerate(given):
        activations: Any = batch
        for shard in runner.pipeline.shards:
            request = GramForward(i, weights, norms)
            activations = runner.pipeline.link.call(shard, request, activations)
        runner.pipeline.link.get(activations)
    everywhere(runner.pipeline, WriteStatistics(key, len(given)))


def probe(
    runner: ModelRunner, task: str, key: str, asked: StatisticsRequest, rows: NDArray[np.int64]
) -> None:
    """Compute the squared gradients of one expert on rows of its task, batch by batch."""
    pipeline, weights = (
        runner.pipeline,
        Weights(key, coding=one_hot(runner.tasks, task), own=True),
    )
    estimate = asked.options["estimate"]
    call, (*before, last) = pipeline.link.call, pipeline.shards
    given = cut(runner, task, rows, asked.batch_size)
    for i, batch in enumerate(given):
        activations: Any = batch
        for shard in (*before, last):
            activations = call(shard, FisherForward(i, f"{key} {i}", weights), activations)
        back = call(last, FisherFinish(f"{key} {i}", task, estimate, asked.seed + i))
        for shard in reversed(before):
            back = call(shard, FisherBackward(f"{key} {i}", batch.size), back)
        pipeline.link.get(back)
    everywhere(pipeline, WriteStatistics(key, len(given)))


def advance(
    runner: ModelRunner,
    method: str,
    params: Mapping[str, Any],
    asked: StatisticsRequest,
    keys: Sequence[str],
    rows: Mapping[str, NDArray[np.int64]],
) -> None:
    """Compute Gram matrices behind merged segments (RegMean++), shard after shard."""
    pipeline = runner.pipeline
    inputs: Any = [cut(runner, task, rows[task], asked.batch_size) for task in runner.tasks]
    for shard in pipeline.shards:
        request = AdvancePrefix(list(keys), method, dict(params))
        inputs = pipeline.link.call(shard, request, inputs)
    pipeline.link.get(inputs)
