"""Dry run of every method before a sweep starts: finds wrong names inside parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, cast

import torch

from actors.experts.metrics import EXACT, metric_of
from actors.pool.pool import Pool
from actors.shards.routers import mlp_names
from fusion.errors import InputError, unknown
from fusion.kinds import MergeInputs, Row
from fusion.logits.head import CosineHead
from fusion.methods.classifiers.interface import TaskEmbeddings
from fusion.methods.routed.dawin import ExpertLogits
from fusion.methods.soups.selection import Selection
from fusion.methods.soups.uniform_soup import positions
from fusion.registry import (
    METHODS,
    Adapted,
    Fitted,
    LogitSpace,
    Routed,
    Selected,
    Static,
)
from fusion.task_vectors.task_vectors import TaskVectors
from sweeps.planning.data_checks import no_answers
from sweeps.planning.learning_needs import TRIED
from sweeps.spec.candidates import random_points
from sweeps.spec.method import for_kind
from sweeps.spec.metric import metric_names, own_metrics
from sweeps.spec.sweep import SweepSpec


def dry_run(spec: SweepSpec, pool: Pool) -> None:
    """Run every method on vectors of one element for each tensor: finds wrong names inside
    parameters.

    Raises:
            InputError: the method refuses its input: an unknown expert, a weight too few.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with a pool of threads for each survey it would take four times that
    try:
        dry_runs(spec, pool)
    finally:
        torch.set_num_threads(threads)


def dry_runs(spec: SweepSpec, pool: Pool) -> None:
    """See `dry_run`."""
    for name, entry in spec.methods.items():
        method = METHODS[name]
        if "mlp_blocks" in method.requires:
            check_routed(name, pool)
        if method.stepwise:
            continue  # `needs_of` has built each of its routers, or training plans
        for params in islice(random_points(entry, name, spec.seed), TRIED):
            try:
                for_kind(DRY_RUNS, method)(method, params, pool, spec)
            except InputError as error:
                raise InputError(f"methods.{name}: {error}") from None


def merge(method: Static, params: dict[str, Any], pool: Pool, spec: SweepSpec) -> None:
    """Dry run of a method that merges weights."""
    zeros = {name: torch.zeros(1) for name in pool.names}
    vectors = TaskVectors.from_state_dicts(zeros, dict.fromkeys(pool.tasks, zeros))
    statistics = task = None
    if "statistics" in method.reads:
        check_tasks(pool, spec)
        statistics = {name: torch.ones(len(pool.tasks), 1) for name in pool.names}
    if method.output == "model_per_task":
        check_own(pool, spec)
        task = pool.tasks[0]
    method.merge(vectors, MergeInputs(statistics=statistics, task=task), **params)


def fuse(method: LogitSpace, params: dict[str, Any], pool: Pool, spec: SweepSpec) -> None:
    """Dry run of a method that fuses the experts' embeddings."""
    method.fuse(torch.ones(len(pool.tasks), 1, 2), torch.ones(2, 2), **params)


def select(method: Selected, params: dict[str, Any], pool: Pool, spec: SweepSpec) -> None:
    """Dry run of a method that selects ingredients: check the names in its parameters."""
    written = "answers" in pool.family.offers(pool.base) and method.output != "logits"
    check_selection(method.selection(**params), pool, spec, written=written)


def fit(method: Fitted, params: dict[str, Any], pool: Pool, spec: SweepSpec) -> None:
    """Dry run of a method that fits a classifier to embeddings."""
    with warnings.catch_warnings(action="ignore"):
        method.fit(stand_in(pool), **params)


def adapt(method: Adapted, params: dict[str, Any], pool: Pool, spec: SweepSpec) -> None:
    """Dry run of a method that learns on outputs of a merged model: of the merge, and of itself."""
    check_tasks(pool, spec)
    ((name, its),) = method.merged_by(params).items()
    merge(cast(Static, METHODS[name]), its, pool, spec)
    fit(method, params, pool, spec)


def route(method: Routed, params: dict[str, Any], pool: Pool, spec: SweepSpec) -> None:
    """Dry run of a method that routes by the experts' logits."""
    expert_logits = torch.arange(8.0).view(4, 2)
    stack = expert_logits.expand(len(pool.tasks), 4, 2)
    labels = torch.zeros(len(expert_logits), dtype=torch.int64)
    routing = method.route(ExpertLogits(pool.tasks, stack, expert_logits, labels), **params)
    if routing.logits is not None and metric_of(spec.metric) is EXACT:
        raise InputError(no_answers(spec.metric))


DRY_RUNS: Mapping[type[Row], Callable[[Any, dict[str, Any], Pool, SweepSpec], None]] = {
    Static: merge,
    LogitSpace: fuse,
    Selected: select,
    Fitted: fit,
    Adapted: adapt,
    Routed: route,
}
"""Kind of method -> its dry run, for the kinds that do not learn in steps."""


def check_routed(name: str, pool: Pool) -> None:
    """Raise InputError if no expert changes an MLP, e.g. adapters of attention only."""
    changed = (key for e in pool.experts.values() for key in (*e.tensors, *e.factors))
    inside = set(mlp_names(pool.family.segments(pool.base)))
    if inside.isdisjoint(changed):
        raise InputError(
            f"methods.{name}: no expert changes an MLP, whose task vectors its routers weigh:"
            " adapters of fc1 or fc2, or full models, needed"
        )


def check_tasks(pool: Pool, spec: SweepSpec) -> None:
    """Raise InputError if an expert has no task of its own on which to compute statistics."""
    lacking = [name for name in pool.tasks if name not in spec.tasks]
    if lacking:
        tasks = ", ".join(spec.tasks)
        raise InputError(
            f"expert {lacking[0]!r}: no task of its name, whose rows are needed; tasks: {tasks}"
        )


def check_own(pool: Pool, spec: SweepSpec) -> None:
    """Raise InputError if no task has an expert, so that the method could not be evaluated."""
    if pool.experts.keys().isdisjoint(spec.tasks):
        raise InputError(
            "it makes one model a task with an expert of its name, and no task has one; tasks:"
            f" {', '.join(spec.tasks)}; experts: {', '.join(pool.tasks)}"
        )


def check_selection(selection: Selection, pool: Pool, spec: SweepSpec, *, written: bool) -> None:
    """Raise InputError if a selection names an unknown ingredient or metric.

    `written`: whether the candidates write answers, so that exact match is measured.
    """
    for names in (selection.ingredients, selection.start):
        positions(pool.tasks, names)
    known = metric_names(spec.tasks, spec.unseen, own_metrics(spec.tasks), written=written)
    if selection.metric is not None and selection.metric not in known:
        raise InputError(f"metric: {unknown('metric', selection.metric, known)}")


def stand_in(pool: Pool) -> TaskEmbeddings:
    """A task of two classes with random embeddings."""

    def embedded(source: str, role: str, at: torch.Tensor | None) -> torch.Tensor:
        drawn = torch.Generator().manual_seed(len(source) + (role == "fit"))
        rows = torch.randn(12, 8, generator=drawn)
        return rows if at is None else rows[at]

    labels = torch.arange(12) % 2
    head = CosineHead(torch.eye(2, 8))
    return TaskEmbeddings(pool.tasks, head, lambda role: labels, embedded, pool.tasks[0])
