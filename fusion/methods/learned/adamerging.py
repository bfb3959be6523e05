"""AdaMerging: coefficients learned by minimising the entropy of predictions."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from fusion.methods.learned.steps import Learning, Shape, Unlabelled
from fusion.task_vectors.sparsify import Trim


class Coefficients(nn.Module):
    """One coding [1, T, G] for all inputs, as a parameter."""

    def __init__(self, tasks: int, groups: int, scale: float, clamp: bool = False) -> None:
        super().__init__()
        self.coding = nn.Parameter(torch.full((1, tasks, groups), scale))
        self.clamp = clamp

    def forward(self, features: Tensor | None = None) -> Tensor:
        """[1, T, G]; features are not read."""
        return self.coding.clamp(0, 1) if self.clamp else self.coding * 1.0


def adamerging(
    shape: Shape,
    *,
    grouping: Literal["layer", "task"] = "layer",
    scale: float = 0.3,
    clamp: bool = False,
    density: Annotated[float, Interval(gt=0, le=1)] = 1.0,
    learning_rate: Annotated[float, Interval(gt=0)] = 1e-3,
    steps: Annotated[int, Interval(ge=0)] = 1000,
    batch_size: Annotated[int, Interval(ge=1)] = 16,
    adapt_on: Unlabelled = "fit",
    tasks_at_once: Annotated[int | None, Interval(ge=1)] = None,
    save_every: Annotated[int, Interval(ge=1)] = 50,
) -> Learning:
    """θ_k = θ₀,k + Σ_t λ_{t[,k]} τ_{t,k}, λ minimising Σ_tasks mean_batch H(softmax(logits)).

    Adam without weight decay, constant learning rate. All tasks of a step go through the model in
    one forward pass, and ∂L/∂λ_{t,k} = ⟨∂L/∂θ_k, τ_{t,k}⟩ is a dot product a layer.

    Args:
        shape: tasks and tensors.
        grouping: `layer`: a coefficient a task and tensor; `task`: one a task.
        scale: λ at the start, for all. Default 0.3: the paper's.
        clamp: use clamp(λ, 0, 1) in the forward pass (no gradient outside); the authors' code
            always does, FusionBench by default does not.
        density: below 1: AdaMerging++: TIES' trim of each task vector to this fraction of its
            largest entries, then only what agrees with the elected sign; the paper keeps 0.2.
        learning_rate: Adam's. Default 1e-3: the paper's.
        steps: default 1000: FusionBench's (the authors: 500 of two batches).
        batch_size: images a task and step. Default 16: the paper's.
        adapt_on: whose unlabelled images are learned from; the paper uses the test split
            (`report`).
        tasks_at_once: how many tasks go through one forward pass; the gradient is that of all of
            them, the activations kept are those of so many. Default: all, which merges once.
        save_every: steps between checkpoints.

    Source: Yang et al. 2024, arXiv:2310.02575, §3; FusionBench's CLIP implementation.
    Deviation: entropy without epsilon, as the authors'.
    """
    groups = len(shape.groups) if grouping == "layer" else 1
    return Learning(
        router=Coefficients(len(shape.tasks), groups, scale, clamp),
        learning_rate=learning_rate,
        steps=steps,
        batch_size=batch_size,
        adapt_on=adapt_on,
        save_every=save_every,
        trim=Trim(density, elect=density < 1.0),
        tasks_at_once=tasks_at_once,
    )
