"""Learned soup: mixing coefficients and a temperature, learned on held-out labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor, nn

from fusion.methods.learned.steps import LabelledSplit, Shape, TrainingPlan
from fusion.task_vectors.task_vectors import block_of

Granularity: TypeAlias = Literal["global", "block", "tensor"]


class Shares(nn.Module):
    """Mixing coefficients: softmax over ingredients of [T, K], for K parts of the model."""

    def __init__(self, tasks: int, parts: Sequence[int]) -> None:
        """Start at the uniform soup.

        Args:
            tasks: number of ingredients T.
            parts: the part, 0 … K − 1, of each tensor; all 0 for a global soup.
        """
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(tasks, max(parts, default=0) + 1))
        self.log_beta = nn.Parameter(torch.zeros(()))
        self.parts = list(parts) if max(parts, default=0) else [0]

    def forward(self, features: Tensor | None = None) -> Tensor:
        """The coding [1, T, G]; its columns are positive and sum to 1. `features` are ignored."""
        return self.raw.softmax(0)[None, :, self.parts]

    def beta(self) -> Tensor:
        """Inverse temperature of the logits; initially 1."""
        return self.log_beta.exp()


def learned_soup(
    shape: Shape,
    *,
    granularity: Granularity = "tensor",
    temperature: bool = True,
    entropy_weight: Annotated[float, Interval(ge=0)] = 0.0,
    learning_rate: Annotated[float, Interval(gt=0)] = 0.05,
    steps: Annotated[int, Interval(ge=0)] = 500,
    batch_size: Annotated[int, Interval(ge=1)] = 256,
    adapt_on: LabelledSplit = "select",
    tasks_at_once: Annotated[int | None, Interval(ge=1)] = None,
    save_every: Annotated[int, Interval(ge=1)] = 50,
) -> TrainingPlan:
    """Learned soup: mixing coefficients a and inverse temperature β, learned on held-out labels.

    min over a, β of Σ_j CE(β·f(x_j; Σ_i a_i θ_i), y_j), with a = softmax(A) over ingredients. Since
    Σ_i a_i = 1, Σ a_i θ_i = θ₀ + Σ a_i τ_i, and ∂L/∂a_li = ⟨∂L/∂θ_l, τ_li⟩. So a step is one
    forward and backward pass of the merged model, and k inner products for each tensor. A starts at
    0, the uniform soup. β scales the logits: predictions do not change, likelihoods do.

    Args:
        shape: ingredients and tensors.
        granularity: `global`: one coefficient for each ingredient. `block`: one for each ingredient
            and transformer layer (tensors outside of layers share one). `tensor`: one for each
            ingredient and tensor, the paper's "by layer" and its best. Default `tensor`.
        temperature: learn β; else it stays 1. Default true, as in the paper.
        entropy_weight: weight of the mean over parts of Σ_i a_i·ln a_i, a regulariser towards the
            uniform soup. Default 0, as in the paper.
        learning_rate: Adam's, constant. Default 0.05, the released code's (AdamW without decay).
        steps: default 500; the released code makes 5 passes over 26,000 images, which is 508 steps.
        batch_size: images of each task in a step. Default 256, the released code's.
        adapt_on: split whose images AND labels are learned from. Default `select`: the paper learns
            on the held-out set that is also used for selection, and the result is marked so. `fit`
            keeps the splits apart, but is what the ingredients were trained on.
        tasks_at_once: tasks in one forward pass. Default: all.
        save_every: steps between checkpoints.

    Source: Wortsman et al. 2022, arXiv:2203.05482, appendix I; released `learned` recipe.
    Deviations: held-out images are drawn without replacement in each epoch; gradients are computed
    from task vectors instead of weights (equal, since Σ a_i = 1), which loses fewer digits.
    """
    router = Shares(len(shape.tasks), parts_of(shape.groups, granularity))
    router.log_beta.requires_grad_(temperature)
    return TrainingPlan(
        router=router,
        learning_rate=learning_rate,
        steps=steps,
        batch_size=batch_size,
        adapt_on=adapt_on,
        save_every=save_every,
        tasks_at_once=tasks_at_once,
        entropy_weight=entropy_weight,
    )


def parts_of(groups: Sequence[str], granularity: Granularity) -> list[int]:
    """Number of the part that each tensor belongs to, in order of first occurrence.

    >>> parts_of(["a", "encoder.layers.0.x", "encoder.layers.0.y", "b"], "block")
    [0, 1, 1, 0]
    """
    if granularity == "tensor":
        return list(range(len(groups)))
    if granularity == "global":
        return [0] * len(groups)
    numbers: dict[str, int] = {}
    return [numbers.setdefault(block_of(name), len(numbers)) for name in groups]
