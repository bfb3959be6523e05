"""Predictions: from a recipe to the logits of tasks' rows, one function for each kind of method.

A predictor takes the model runner, the method's row of the table, the recipe, the tasks and the
role of the rows, and returns task -> logits [N, C]. A new kind of method adds its function to
`PREDICTORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from actors.artifacts.fitted_file import fitted_logits
from actors.artifacts.recipe import BASE, Recipe
from actors.data.task_rows import SAMPLES, Cuts, batches
from actors.experts.in_model_training import opened, routed_logits
from actors.experts.model_runner import Embed, ModelRunner, Predicted, completed, cut_back
from actors.experts.recipe import (
    learned_beta,
    learned_coding,
    of_task,
    opened_gate,
    static_method,
)
from actors.experts.statistics import compute_statistics, normed
from actors.shards.messages import Batch, Weights, for_task, weights_of
from fusion.kinds import Row
from fusion.methods.routed.dawin import ExpertLogits, is_oracle
from fusion.registry import (
    METHODS,
    Adapted,
    Fitted,
    Gated,
    InModel,
    LogitSpace,
    PerTask,
    Routed,
)
from fusion.task_vectors.coding import is_largest, one_hot, selected_expert

Predictions: TypeAlias = dict[str, Predicted]
Predictor: TypeAlias = Callable[[ModelRunner, Any, Recipe, Sequence[str], str], Predictions]

MERGES = 16
"""Largest number of distinct models that are merged in full; beyond it, each sample is computed
with its own merged layers."""


def model_weights(runner: ModelRunner, recipe: Recipe) -> Weights:
    """The weights of a recipe's single model, after the statistics and surveys that it needs.

    Raises:
        InputError: an unknown method or parameter, or a method without a single model.
    """
    if recipe.method in runner.references:
        return reference_weights(runner, recipe.method)
    method, make = static_method(recipe), runner.pipeline.weights
    if method is None:
        return make(coding=torch.zeros(1, len(runner.tasks), 1))
    if method.learned == "coding":
        coding, trim = learned_coding(recipe, runner.tasks, runner.pipeline.groups)
        return make(coding=coding, trim=trim)
    if method.learned == "in_model":
        return opened(runner, recipe)[0]
    reads = "statistics" in method.reads
    keys = compute_statistics(runner, recipe.method, recipe.params) if reads else ()
    return make(recipe.method, recipe.params, statistics=keys, task=recipe.task)


def running_of(runner: ModelRunner, recipe: Recipe) -> dict[str, Tensor]:
    """Running statistics of the batch norm of a recipe's model; see `WeightsReader.running`.

    Raises:
        InputError: see `predict`.
    """
    method = METHODS.get(recipe.method)
    alone = recipe.method == "experts" or (method is not None and method.output == "logits")
    if not runner.norms.members or alone:
        return {}

    def found(weights: Weights, of: Recipe) -> dict[str, Tensor]:
        with runner.filling:
            running = normed(runner, weights, of).running
        assert running is not None
        return dict(running.open())

    if method is None or method.output != "model_per_task":
        return found(model_weights(runner, recipe), recipe)
    every = runner.pipeline.weights(recipe.method, recipe.params)
    parts: dict[str, Tensor] = {}
    for task in runner.tasks:
        part = found(for_task(every, task), of_task(recipe, task))
        parts |= {f"{task}/{name}": value for name, value in part.items()}
    return parts


def reference_weights(runner: ModelRunner, name: str) -> Weights:
    """The weights of a reference: its own, or those of the member of the pool that it is."""
    member, make = runner.references[name], runner.pipeline.weights
    if member is None:
        return make(reference=name)
    if member == BASE:
        return make(coding=torch.zeros(1, len(runner.tasks), 1))
    return make(coding=one_hot(runner.tasks, member), own=True)


def predict(runner: ModelRunner, recipe: Recipe, names: Sequence[str], role: str) -> Predictions:
    """Task -> predictions for its rows of that role, by the predictor of the method's kind."""
    if recipe.method == "experts":
        return {name: by_expert(runner, name, name, role) for name in names}
    method = METHODS.get(recipe.method)  # None: the base
    predictor = by_one if method is None else PREDICTORS.get(type(method), by_one)
    return predictor(runner, method, recipe, names, role)


def by_one(
    runner: ModelRunner, method: object, recipe: Recipe, names: Sequence[str], role: str
) -> Predictions:
    """One model for all tasks."""
    beta = learned_beta(recipe)
    with runner.filling:
        weights = normed(runner, model_weights(runner, recipe), recipe)
        found = {name: classified(runner, weights, name, role) for name in names}
    return {name: each.scaled(beta) for name, each in found.items()}


def by_task(
    runner: ModelRunner, method: PerTask, recipe: Recipe, names: Sequence[str], role: str
) -> Predictions:
    """One model a task."""
    every = runner.pipeline.weights(recipe.method, recipe.params)

    def own(name: str) -> Weights:
        return normed(runner, for_task(every, name), of_task(recipe, name))

    with runner.filling:
        return {name: classified(runner, own(name), name, role) for name in names}


def by_embeddings(
    runner: ModelRunner, method: LogitSpace, recipe: Recipe, names: Sequence[str], role: str
) -> Predictions:
    """Logits fused from all experts' embeddings."""
    found = {}
    for task in names:
        stack = torch.stack([runner.embedded(expert, task, role) for expert in runner.tasks])
        parts = (
            method.fuse(stack[:, rows], runner.task_heads[task], **recipe.params)
            for rows in batches(stack.shape[1])
        )
        found[task] = Predicted(torch.cat(list(parts)))
    return found


def by_fit(
    runner: ModelRunner, method: Fitted, recipe: Recipe, names: Sequence[str], role: str
) -> Predictions:
    """The classifiers that were fitted to embeddings of the experts, or of a merged model."""
    of = method.merged_by(recipe.params)
    return {
        name: Predicted(fitted_logits(method, runner.task_embeddings(name, of), name, recipe, role))
        for name in names
    }


def by_route(
    runner: ModelRunner, method: Routed, recipe: Recipe, names: Sequence[str], role: str
) -> Predictions:
    """One model for each group of samples, by coefficients computed from the experts' logits."""
    return {name: routed(runner, method, recipe, name, role) for name in names}


def by_gate(
    runner: ModelRunner, method: Gated, recipe: Recipe, names: Sequence[str], role: str
) -> Predictions:
    """One model for each sample, by a gate that reads the sample's features."""
    gate, extractor, trim = opened_gate(method, recipe, runner.tasks, runner.pipeline.groups)
    surveyed = runner.trimmed(trim)

    def predicted(task: str) -> Predicted:
        features = runner.features(task, role, extractor)
        own = runner.tasks.index(task) if task in runner.tasks else None
        recognised = torch.zeros(len(features), dtype=torch.bool)

        def coded(given: Iterable[tuple[Tensor | slice, Batch]]) -> Iterator[tuple[Batch, Weights]]:
            for rows, batch in given:
                with torch.no_grad():
                    coding = gate(features[rows])
                if own is not None:
                    recognised[rows] = is_largest(coding, own).cpu()
                yield batch, weights_of(surveyed, coding)

        found = sampled(runner, task, role, lambda given: runner.pipeline.embed_coded(coded(given)))
        return found if own is None else replace(found, recognised=recognised)

    return {task: predicted(task) for task in names}


def sampled(runner: ModelRunner, task: str, role: str, embed: Embed) -> Predicted:
    """Predictions of models that make one a sample."""
    cuts = runner.cuts(task, role, SAMPLES)
    given = ((rows, runner.batch(task, role, rows)) for rows in cuts.parts)
    return completed(runner, task, role, runner.headed(task, embed(given), cuts), embed)


def by_in_model(
    runner: ModelRunner, method: InModel, recipe: Recipe, names: Sequence[str], role: str
) -> Predictions:
    """Routers inside the model, or one model blended by masks that were learned in the shards."""
    if method.output == "model_per_sample":
        return routed_logits(runner, recipe, names, role)
    return by_one(runner, method, recipe, names, role)


PREDICTORS: Mapping[type[Row], Predictor] = {
    LogitSpace: by_embeddings,
    Fitted: by_fit,
    Adapted: by_fit,
    Routed: by_route,
    Gated: by_gate,
    InModel: by_in_model,
    PerTask: by_task,
}
"""Kind of method -> its predictor; all others use `by_one`."""


def by_expert(runner: ModelRunner, expert: str, task: str, role: str) -> Predicted:
    """Predictions of one expert; its outputs are cached."""

    def embed(given: Iterable[tuple[Tensor | slice, Batch]]) -> Iterator[Tensor]:
        weights = runner.pipeline.weights(coding=one_hot(runner.tasks, expert), own=True)
        weights = runner.of_member(weights, expert)
        return runner.pipeline.embed(weights, (batch for _, batch in given))

    return completed(runner, task, role, runner.predicted_of(expert, task, role), embed)


def classified(runner: ModelRunner, weights: Weights, task: str, role: str) -> Predicted:
    """Predictions of one model; cached embeddings are used where the model is an expert."""
    if weights.coding is not None and weights.trim.nothing:
        expert = selected_expert(weights.coding)
        if expert is not None:
            return by_expert(runner, runner.tasks[expert], task, role)
    cuts = runner.cuts(task, role)
    cut = (runner.batch(task, role, rows) for rows in cuts.parts)
    found = runner.headed(task, runner.pipeline.embed(weights, cut), cuts)

    def embed(given: Iterable[tuple[Tensor | slice, Batch]]) -> Iterator[Tensor]:
        return runner.pipeline.embed(weights, (batch for _, batch in given))

    return completed(runner, task, role, found, embed)


def routed(runner: ModelRunner, method: Routed, recipe: Recipe, task: str, role: str) -> Predicted:
    """Predictions by coefficients computed from the experts' logits (DaWin)."""
    entropies = [runner.entropies_of(each, task, role) for each in (BASE, *runner.tasks)]
    known = [each for each in entropies if each is not None]
    expert_logits = ExpertLogits(
        runner.tasks,
        torch.stack([runner.logits_of(expert, task, role) for expert in runner.tasks]),
        runner.logits_of(BASE, task, role),
        runner.labels(task, role) if is_oracle(recipe.params) else None,
        torch.stack(known) if known else None,
    )
    routing = method.route(expert_logits, **recipe.params)
    if routing.logits is not None:
        return Predicted(routing.logits)

    def embed(given: Iterable[tuple[Tensor | slice, Batch]]) -> Iterator[Tensor]:
        coding = routing.codings
        return runner.pipeline.embed_coded(
            (batch, runner.pipeline.weights(coding=coding[routing.assign[rows]]))
            for rows, batch in given
        )

    if len(routing.codings) > MERGES:
        return sampled(runner, task, role, embed)
    order, found = [], []
    for index, coding in enumerate(routing.codings):
        rows = torch.nonzero(routing.assign == index).flatten()
        weights = runner.pipeline.weights(coding=coding[None])
        part = runner.cuts(task, role, at=rows)
        given = (runner.batch(task, role, at) for at in part.parts)
        with runner.filling:
            found.append(runner.headed(task, runner.pipeline.embed(weights, given), part))
        order.append(rows)
    cuts = Cuts(order, torch.cat(order).argsort())
    return completed(runner, task, role, cut_back(found, cuts), embed)
