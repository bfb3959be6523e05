"""In-model learning: training plans of methods whose parameters are stored in the shards.

What is learned (routers inside of blocks, or the logits of a mask, one an element of the model) is
read where a block's weights are, so it is kept by whoever holds the block while steps are taken,
and travels between calls as one file. A course says what and how; it knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from fusion.methods.learned.steps import Unlabelled

MaskKind: TypeAlias = Literal["continuous", "discrete", "expected"]

Compat: TypeAlias = Literal["paper", "fusionbench"]


@dataclass(frozen=True)
class RouterOptions:
    """Routers that read the inputs of MLPs."""

    depth: int
    """Linear layers: 2, 1, or 0, a constant."""
    shared: bool
    """Whether all blocks have one router."""
    batch_mean: bool
    """Learn with the mean coefficients of each batch; False: with one model a sample."""
    together: int
    """Images that share their mean coefficients when the method is evaluated; 0: none do."""
    prune: float | None
    """Each task vector of an MLP keeps what is larger than this quantile; None: all."""
    seed: int
    """Of the weights at the start."""


@dataclass(frozen=True)
class MaskOptions:
    """A mask over the model's elements, shared by all tasks."""

    start: float
    """All logits at the start."""
    temperature: float
    """Of the relaxed Bernoulli."""
    kind: MaskKind
    """Of the mask that the merged model has."""
    seed: int
    """Of that mask, where it is drawn."""
    grouping: Literal["task", "layer"] | None = None
    """Coefficients that are learned too: one a task, or a task and tensor; None: none are."""
    clamp: bool = False
    """Whether those are used clamped to [0, 1]."""
    inner_rate: float = 1.0
    """Learning rate of the coefficients' one step ahead while the mask is learned."""
    outer_rate: float = 1e-3
    """Learning rate of the coefficients under the finished mask."""
    mask_steps: int = 0
    """Of the course's steps, those that learn the mask; the others learn coefficients. Only where
    those are learned at all."""
    tasks_at_once: int | None = None
    """How many tasks go through one forward pass; None: all."""


@dataclass(frozen=True)
class ResidentCourse:
    """One course of learning."""

    options: RouterOptions | MaskOptions
    scale: float
    """λ: of task arithmetic, and of all coefficients at the start."""
    learning_rate: float
    """Adam's, of routers or logits."""
    steps: int
    batch_size: int
    """Images a task and step."""
    adapt_on: Unlabelled
    save_every: int
    """Steps between checkpoints."""
