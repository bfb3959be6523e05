"""Training plans of methods whose parameters are stored in the shards (in-model learning).

The learned parameters (routers inside of blocks, or mask logits for every element of the model) are
used where a block's weights are. So the process that holds the block keeps them during training,
and between calls they travel as one file. A plan does not depend on the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from fusion.methods.learned.steps import UnlabelledSplit

MaskKind: TypeAlias = Literal["continuous", "discrete", "expected"]
"""Mask of the merged model, see `fusion.methods.learned.concrete.mask_of`."""

Compat: TypeAlias = Literal["paper", "fusionbench"]


@dataclass(frozen=True)
class RouterOptions:
    """Options of routers that read the inputs of MLPs (WE-MoE)."""

    depth: int
    """Number of linear layers: 2, 1, or 0 (a constant)."""
    shared: bool
    """Whether all blocks share one router."""
    batch_mean: bool
    """Train with the mean coefficients of each batch; False: with one model for each sample."""
    together: int
    """Images that share their mean coefficients in an evaluation; 0: none do."""
    prune: float | None
    """Task vectors of MLPs keep entries above this quantile; None: all entries."""
    seed: int
    """Seed of the initial weights."""


@dataclass(frozen=True)
class MaskOptions:
    """Options of a mask over the model's elements, shared by all tasks (Concrete)."""

    start: float
    """Initial value of all logits."""
    temperature: float
    """Temperature of the relaxed Bernoulli."""
    kind: MaskKind
    """Mask of the merged model."""
    seed: int
    """Seed of that mask, if it is sampled."""
    grouping: Literal["task", "layer"] | None = None
    """Coefficients that are learned too: one for each task, or for each task and tensor; None:
    none."""
    clamp: bool = False
    """Whether these coefficients are clamped to [0, 1]."""
    inner_rate: float = 1.0
    """Learning rate of the inner step on the coefficients while the mask is learned."""
    outer_rate: float = 1e-3
    """Learning rate of the coefficients after the mask is learned."""
    mask_steps: int = 0
    """Number of steps that learn the mask; the remaining steps of the plan learn coefficients. Used
    only if coefficients are learned."""
    tasks_at_once: int | None = None
    """Tasks in one forward pass; None: all."""


@dataclass(frozen=True)
class InModelPlan:
    """Training plan of an in-model method."""

    options: RouterOptions | MaskOptions
    scale: float
    """λ of task arithmetic, and the initial value of all coefficients."""
    learning_rate: float
    """Adam's learning rate, for routers or logits."""
    steps: int
    batch_size: int
    """Images of each task in a step."""
    adapt_on: UnlabelledSplit
    save_every: int
    """Steps between checkpoints."""
