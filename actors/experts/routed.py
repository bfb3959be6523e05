"""Rows dealt to models by coefficients that are read off the experts' logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from actors.artifacts.recipe import BASE, Recipe
from actors.data.task_rows import SAMPLES, batches
from fusion.logits.cosine_head import logits
from fusion.methods.routed.dawin import Evidence, is_oracle
from fusion.registry import Routed

if TYPE_CHECKING:
    from actors.experts.local import LocalExperts

MERGES = 16
"""Models that a task's rows are dealt to by merging each of them once; of more, one a sample."""


def routed(experts: LocalExperts, method: Routed, recipe: Recipe, task: str, role: str) -> Tensor:
    """Logits [N, C] by coefficients read off the experts' logits."""
    evidence = Evidence(
        experts.tasks,
        torch.stack([experts.logits_of(expert, task, role) for expert in experts.tasks]),
        experts.logits_of(BASE, task, role),
        experts.labels(task, role) if is_oracle(recipe.params) else None,
    )
    routing = method.route(evidence, **recipe.params)
    if routing.logits is not None:
        return routing.logits
    head = experts.heads[task]
    if len(routing.codings) > MERGES:
        parts = experts.pipeline.embed_coded(
            (
                experts.batch(task, role, rows),
                experts.pipeline.weights(coding=routing.codings[routing.assign[rows]]),
            )
            for rows in batches(len(routing.assign), SAMPLES)
        )
        return experts.headed(task, parts)
    found = torch.empty(len(routing.assign), len(head))
    for index, coding in enumerate(routing.codings):
        rows = torch.nonzero(routing.assign == index).flatten()
        weights = experts.pipeline.weights(coding=coding[None])
        cut = [rows[part] for part in batches(len(rows))]
        parts = experts.pipeline.embed(weights, (experts.batch(task, role, at) for at in cut))
        with experts.filling:
            for at, z in zip(cut, parts, strict=True):
                found[at] = logits(z.float(), head.to(z.device)).cpu()
    return found
