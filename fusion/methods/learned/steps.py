"""Training of codings and gates: the plan, the micro-batches of a step, one optimiser step.

The loop knows nothing of models. It hands codings and row numbers to whoever holds the experts,
and is handed back each loss and its gradient with respect to the coding; from there autograd goes
on into the router.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from fusion.errors import InputError
from fusion.logits.optimize import draw
from fusion.task_vectors.coding import Coding
from fusion.task_vectors.sparsify import Trim

Unlabelled: TypeAlias = Literal["fit", "select", "report"]
"""Which split's images (never labels) a method adapts to. `report` is what the literature does: the
result has then seen the very images it is reported on, and is marked so."""

Labelled: TypeAlias = Literal["fit", "select"]
"""Which split's images and labels a method learns from; never those that it is reported on."""


@dataclass(frozen=True)
class Shape:
    """What a router is built for."""

    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    """Names of the fused tensors: the G axis of layer-wise codings."""
    width: int = 0
    """Of the features that it reads; 0: it reads none."""


@dataclass(frozen=True)
class Learning:
    """One course of learning."""

    router: nn.Module
    """features [B, d] -> coding [B, T, G]; one that reads no features: None -> [1, T, G]."""
    learning_rate: float
    steps: int
    batch_size: int
    """Images a task and step."""
    adapt_on: Unlabelled
    save_every: int
    """Steps between checkpoints."""
    extractor: str | None = None
    """Source of the features; None: the router reads none, and all tasks share one coding."""
    squash: bool = False
    """Whether images go to the extractor squashed to a square first."""
    batch_mean: bool = True
    """Train with the mean coding of each batch (one model a task); False: one model a sample."""
    rate_per_norm: bool = False
    """Divide the learning rate by the mean L1 norm of what the router's last layer reads."""
    gate: str | None = None
    """A gate file to start from."""
    trim: Trim = field(default_factory=Trim)
    tasks_at_once: int | None = None
    """Of those that share a coding, how many go through one forward pass; None: all."""
    entropy_weight: float = 0.0
    """Times Σ_t c_t·ln c_t, averaged over groups, of a coding of shares."""

    @property
    def shared(self) -> bool:
        """Whether all tasks share one coding, and so one forward pass."""
        return self.extractor is None


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass: rows of one or more tasks through one coding."""

    rows: Mapping[str, Tensor]
    """Task -> int64 [B], among the rows of the split that is adapted to."""
    coding: Coding
    """[1, T, G], or [B, T, G] one a row."""
    beta: Tensor | None = None
    """Inverse temperature of the logits, whose cross-entropy with the labels is the loss; None: the
    loss is their entropy."""


@dataclass(frozen=True)
class Gradient:
    """What a micro-batch gave."""

    losses: Mapping[str, float]
    """Task -> mean loss over its rows, in nats."""
    coding: Tensor
    """∂(Σ_tasks loss)/∂coding, of the coding's shape."""
    beta: float = 0.0
    """∂(Σ_tasks loss)/∂beta."""


ComputeGradients: TypeAlias = Callable[[Sequence[MicroBatch]], Sequence[Gradient]]
"""Who holds the experts: micro-batches -> gradients, in order."""


@runtime_checkable
class Tempered(Protocol):
    """A router that learns from labels, with an inverse temperature of the logits beside it."""

    def beta(self) -> Tensor:
        """The inverse temperature, a scalar."""
        ...


def temperature(router: nn.Module) -> Tensor | None:
    """β of a router that learns from labels: it minimises cross-entropies of β·logits. None: the
    router has none, and minimises entropies, without labels."""
    return router.beta() if isinstance(router, Tempered) else None


def micro_batches(
    learning: Learning,
    sizes: Mapping[str, int],
    features: Mapping[str, Tensor],
    step: int,
    seed: int,
) -> list[MicroBatch]:
    """The micro-batches of one step: one a task; with a shared coding, one of all tasks (or some).

    Args:
        learning: what is learned.
        sizes: task -> rows of the split that is adapted to.
        features: task -> features [N, d]; none are read where `learning.shared`.
        step: from 0.
        seed: of the drawing.
    """
    rows = {
        task: draw(size, learning.batch_size, step, seed + 7919 * at)
        for at, (task, size) in enumerate(sizes.items())
    }
    if learning.shared:
        coding, names = learning.router(None), list(rows)
        each = learning.tasks_at_once or len(names)
        parts = [names[start : start + each] for start in range(0, len(names), each)]
        beta = temperature(learning.router)
        return [MicroBatch({name: rows[name] for name in part}, coding, beta) for part in parts]
    found = []
    for task, at in rows.items():
        coding = learning.router(features[task][at])
        found.append(
            MicroBatch({task: at}, coding.mean(0, keepdim=True) if learning.batch_mean else coding)
        )
    return found


def learn_step(
    learning: Learning,
    optimizer: torch.optim.Optimizer,
    given: Sequence[MicroBatch],
    compute_gradients: ComputeGradients,
    step: int,
) -> dict[str, float]:
    """One step on the sum over tasks of the mean losses: task -> loss.

    Raises:
        InputError: a loss or gradient that is NaN or infinite, by task and step; nothing was
            updated.
    """
    detached = [
        MicroBatch(
            each.rows, each.coding.detach(), None if each.beta is None else each.beta.detach()
        )
        for each in given
    ]
    gradients = compute_gradients(detached)
    losses: dict[str, float] = {}
    for micro_batch, gradient in zip(given, gradients, strict=True):
        losses |= gradient.losses
        bad = [task for task, loss in gradient.losses.items() if loss - loss != 0]
        if bad or not bool(gradient.coding.isfinite().all()):
            task = bad[0] if bad else next(iter(micro_batch.rows))
            why = f"learning_rate {learning.learning_rate:g} may be too large"
            if step == 0:
                why = "nothing is learned yet: the weights of base or experts make it so"
            raise InputError(
                f"step {step}: task {task!r}: loss {gradient.losses[task]}, or its gradient, is"
                f" not finite; {why}"
            )
    optimizer.zero_grad()
    known: list[tuple[Tensor, Tensor]] = []
    for micro_batch, gradient in zip(given, gradients, strict=True):
        known.append((micro_batch.coding, gradient.coding.to(micro_batch.coding)))
        if micro_batch.beta is not None and micro_batch.beta.requires_grad:
            known.append((micro_batch.beta, torch.full_like(micro_batch.beta, gradient.beta)))
    if learning.entropy_weight:
        shares = given[0].coding
        pull = learning.entropy_weight * torch.xlogy(shares, shares).sum(1).mean()
        known.append((pull, torch.ones_like(pull)))
    torch.autograd.backward([at for at, _ in known], [gradient for _, gradient in known])
    optimizer.step()
    return losses
