"""AdaMerging: learn merging coefficients by minimising the entropy of predictions."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from fusion.methods.learned.steps import Shape, TrainingPlan, UnlabelledSplit
from fusion.task_vectors.sparsify import Trim


class Coefficients(nn.Module):
    """One learned coding [1, T, G] for all inputs."""

    def __init__(self, tasks: int, groups: int, scale: float, clamp: bool = False) -> None:
        super().__init__()
        self.coding = nn.Parameter(torch.full((1, tasks, groups), scale))
        self.clamp = clamp

    def forward(self, features: Tensor | None = None) -> Tensor:
        """The coding [1, T, G]; `features` are ignored."""
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
    adapt_on: UnlabelledSplit = "fit",
    tasks_at_once: Annotated[int | None, Interval(ge=1)] = None,
    save_every: Annotated[int, Interval(ge=1)] = 50,
) -> TrainingPlan:
    """AdaMerging: learn coefficients λ by minimising the entropy of the merged model's predictions.

    θ_k = θ₀,k + Σ_t λ_{t[,k]} τ_{t,k}, minimising Σ_tasks mean_batch H(softmax(logits)) on
    unlabelled images with Adam (no weight decay, constant learning rate). All tasks of a step go
    through the model in one forward pass. ∂L/∂λ_{t,k} = ⟨∂L/∂θ_k, τ_{t,k}⟩ is one inner product for
    each tensor.

    Args:
        shape: tasks and tensors.
        grouping: `layer` (default): a coefficient for each task and tensor; `task`: one for each
            task.
        scale: initial value of all λ. Default 0.3, the paper's.
        clamp: use clamp(λ, 0, 1) in the forward pass (no gradient outside). The authors' code
            always does; FusionBench by default does not. Default false.
        density: below 1: AdaMerging++, which first trims each task vector to this fraction of
            largest entries and elects signs, as TIES does; the paper keeps 0.2. Default 1.
        learning_rate: Adam's. Default 1e-3, the paper's.
        steps: default 1000, FusionBench's (the authors: 500 steps of two batches).
        batch_size: images of each task in a step. Default 16, the paper's.
        adapt_on: split of the unlabelled images. Default `fit`; the paper uses the test split
            (`report`).
        tasks_at_once: tasks in one forward pass; fewer need less memory for activations, and the
            gradient is the same. Default: all, which merges once a step.
        save_every: steps between checkpoints.

    Source: Yang et al. 2024, arXiv:2310.02575, §3; FusionBench's CLIP implementation. Deviation
    from FusionBench: entropy without epsilon, as in the authors' code.
    """
    groups = len(shape.groups) if grouping == "layer" else 1
    return TrainingPlan(
        router=Coefficients(len(shape.tasks), groups, scale, clamp),
        learning_rate=learning_rate,
        steps=steps,
        batch_size=batch_size,
        adapt_on=adapt_on,
        save_every=save_every,
        trim=Trim(density, elect=density < 1.0),
        tasks_at_once=tasks_at_once,
    )
