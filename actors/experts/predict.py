"""How each kind of method comes from a recipe to logits: of one model, of many, or of embeddings.

A way is called with the experts, the method's row of the table, the recipe, the tasks and the role
of the rows, and gives task -> logits [N, C]. The next kind of method brings its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from actors.artifacts.fitted_file import fitted_logits
from actors.artifacts.recipe import Recipe
from actors.data.task_rows import SAMPLES, batches
from actors.experts.in_model_training import routed_logits
from actors.experts.recipe import learned_beta, opened_gate
from actors.experts.routed import routed
from actors.shards.messages import Batch, Weights, for_task, weights_of
from fusion.kinds import Row
from fusion.registry import METHODS, Fitted, Gated, LogitSpace, PerTask, Resident, Routed
from fusion.task_vectors.coding import sole

if TYPE_CHECKING:
    from actors.experts.local import LocalExperts

Found: TypeAlias = dict[str, Tensor]
Way: TypeAlias = Callable[["LocalExperts", Any, Recipe, Sequence[str], str], Found]


def answered(experts: LocalExperts, recipe: Recipe, names: Sequence[str], role: str) -> Found:
    """Task -> logits [N, C] of its rows of that role, the way of the method's kind."""
    if recipe.method == "experts":
        return {name: experts.logits_of(name, name, role) for name in names}
    method = METHODS.get(recipe.method)  # None: the base
    way = next((way for kind, way in WAYS.items() if isinstance(method, kind)), by_one)
    return way(experts, method, recipe, names, role)


def by_one(
    experts: LocalExperts, method: object, recipe: Recipe, names: Sequence[str], role: str
) -> Found:
    """One model for all tasks."""
    weights, beta = experts.weights(recipe), learned_beta(recipe)
    with experts.filling:
        return {name: beta * classified(experts, weights, name, role) for name in names}


def by_task(
    experts: LocalExperts, method: PerTask, recipe: Recipe, names: Sequence[str], role: str
) -> Found:
    """One model a task."""
    every = experts.pipeline.weights(recipe.method, recipe.params)
    with experts.filling:
        return {name: classified(experts, for_task(every, name), name, role) for name in names}


def by_embeddings(
    experts: LocalExperts, method: LogitSpace, recipe: Recipe, names: Sequence[str], role: str
) -> Found:
    """All experts' embeddings, fused by the method."""
    found = {}
    for task in names:
        stack = torch.stack([experts.embedded(expert, task, role) for expert in experts.tasks])
        parts = (
            method.fuse(stack[:, rows], experts.heads[task], **recipe.params)
            for rows in batches(stack.shape[1])
        )
        found[task] = torch.cat(list(parts))
    return found


def by_fit(
    experts: LocalExperts, method: Fitted, recipe: Recipe, names: Sequence[str], role: str
) -> Found:
    """What was fitted to embeddings, applied to them."""
    return {name: fitted_logits(method, experts.plane(name), name, recipe, role) for name in names}


def by_route(
    experts: LocalExperts, method: Routed, recipe: Recipe, names: Sequence[str], role: str
) -> Found:
    """Models for groups of samples, by what the experts say of them."""
    return {name: routed(experts, method, recipe, name, role) for name in names}


def by_gate(
    experts: LocalExperts, method: Gated, recipe: Recipe, names: Sequence[str], role: str
) -> Found:
    """A model a sample, by a gate that looks at it."""
    gate, extractor, trim = opened_gate(method, recipe, experts.tasks, experts.pipeline.groups)
    surveyed = experts.trimmed(trim)

    def coded(task: str) -> Iterator[tuple[Batch, Weights]]:
        features = experts.features(task, role, extractor)
        for rows in batches(len(features), SAMPLES):
            with torch.no_grad():
                coding = gate(features[rows])
            yield experts.batch(task, role, rows), weights_of(surveyed, coding)

    return {task: experts.headed(task, experts.pipeline.embed_coded(coded(task))) for task in names}


def by_resident(
    experts: LocalExperts, method: Resident, recipe: Recipe, names: Sequence[str], role: str
) -> Found:
    """Routers within the model; or one model, by what was learned in the shards."""
    if method.blend is None:
        return routed_logits(experts, recipe, names, role)
    return by_one(experts, method, recipe, names, role)


WAYS: Mapping[type[Row], Way] = {
    LogitSpace: by_embeddings,
    Fitted: by_fit,
    Routed: by_route,
    Gated: by_gate,
    Resident: by_resident,
    PerTask: by_task,
}
"""Kind -> its way; of all others, `by_one`."""


def classified(experts: LocalExperts, weights: Weights, task: str, role: str) -> Tensor:
    """Logits [N, C] of one model; of one that is an expert, from its cached embeddings."""
    if weights.coding is not None and weights.trim.nothing:
        expert = sole(weights.coding)
        if expert is not None:
            return experts.logits_of(experts.tasks[expert], task, role)
    cut = (experts.batch(task, role, rows) for rows in batches(experts.size(task, role)))
    return experts.headed(task, experts.pipeline.embed(weights, cut))
