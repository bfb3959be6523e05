"""Learned soup: mixing coefficients and a temperature, by gradient descent on held-out labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor, nn

from fusion.methods.learned.steps import Labelled, Learning, Shape
from fusion.task_vectors.task_vectors import block_of

Granularity: TypeAlias = Literal["global", "block", "tensor"]


class Shares(nn.Module):
    """softmax over ingredients of raw coefficients [T, K], one column for each of K parts."""

    def __init__(self, tasks: int, parts: Sequence[int]) -> None:
        """`parts`: which of the K parts each tensor belongs to; all 0 for a global soup."""
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(tasks, max(parts, default=0) + 1))
        self.log_beta = nn.Parameter(torch.zeros(()))
        self.parts = list(parts) if max(parts, default=0) else [0]

    def forward(self, features: Tensor | None = None) -> Tensor:
        """[1, T, G], each column a point of the simplex; features are not read."""
        return self.raw.softmax(0)[None, :, self.parts]

    def beta(self) -> Tensor:
        """The inverse temperature of the logits, 1 at the start."""
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
    adapt_on: Labelled = "select",
    tasks_at_once: Annotated[int | None, Interval(ge=1)] = None,
    save_every: Annotated[int, Interval(ge=1)] = 50,
) -> Learning:
    """min over a, β of Σ_j CE(β·f(x_j; Σ_i a_i θ_i), y_j), with a = softmax(A) over ingredients.

    Σ_i a_i = 1, so that Σ a_i θ_i = θ₀ + Σ a_i τ_i, and ∂L/∂a_li = ⟨∂L/∂θ_l, τ_li⟩: one forward
    and backward pass of the merged model and k inner products a tensor. A starts at 0, the uniform
    soup. β is folded into the head: labels do not change, likelihoods do.

    Args:
        shape: ingredients and tensors.
        granularity: `global`: one coefficient an ingredient; `block`: one an ingredient and
            transformer layer (tensors outside of layers share one); `tensor`: one an ingredient
            and tensor, the paper's "by layer". Default `tensor`: its best.
        temperature: learn β; else it stays 1. Default true: the paper's.
        entropy_weight: times the mean over parts of Σ_i a_i·ln a_i, a pull to the uniform soup.
            Default 0: the paper's.
        learning_rate: Adam's, constant. Default 0.05: the released code's (AdamW without decay).
        steps: default 500; the released code makes 5 passes over 26,000 images, which is 508.
        batch_size: images a task and step. Default 256: the released code's.
        adapt_on: whose images AND labels are learned from. Default `select`: the paper learns on
            the held-out set that selects elsewhere, and the row says so; `fit` keeps the splits
            apart, but is what the ingredients were trained on.
        tasks_at_once: how many tasks go through one forward pass. Default: all.
        save_every: steps between checkpoints.

    Source: Wortsman et al. 2022, arXiv:2203.05482, appendix I; released `learned` recipe.
    Deviations: held-out images are drawn without replacement an epoch, step by step; gradients
    by task vectors rather than weights (equal, since Σ a_i = 1), which loses fewer digits.
    """
    router = Shares(len(shape.tasks), parts_of(shape.groups, granularity))
    router.log_beta.requires_grad_(temperature)
    return Learning(
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
    """Which part each tensor belongs to, numbered as first met.

    >>> parts_of(["a", "encoder.layers.0.x", "encoder.layers.0.y", "b"], "block")
    [0, 1, 1, 0]
    """
    if granularity == "tensor":
        return list(range(len(groups)))
    if granularity == "global":
        return [0] * len(groups)
    numbers: dict[str, int] = {}
    return [numbers.setdefault(block_of(name), len(numbers)) for name in groups]
