"""Training of codings and gates: the plan, the micro-batches of a step, one optimiser step.

The loop does not depend on the model. It hands codings and row numbers to the object that holds the
experts, and gets back each loss and its gradient with respect to the coding. Autograd then
continues into the router.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from fusion.errors import InputError
from fusion.logits.optimize import draw
from fusion.task_vectors.coding import Coding
from fusion.task_vectors.sparsify import Trim

UnlabelledSplit: TypeAlias = Literal["fit", "select", "report"]
"""Split whose inputs (never labels) a method adapts to. `report` is what the literature does: the
result has then seen the images it is reported on, and is marked so."""

STACKED = {"cpu": 64 << 20, "cuda": 8 << 30}
"""Device -> bytes of activations that autograd may keep of a pass of several tasks' models. On a
CPU stacking saves small operations, and activations beyond its cache cost more than it saves. On a
GPU it saves launches. A task that takes more than this has a pass of its own."""

LabelledSplit: TypeAlias = Literal["fit", "select"]
"""Split whose inputs and labels a method learns from; never the one it is reported on."""


@dataclass(frozen=True)
class Shape:
    """Sizes that a router is built for."""

    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    """Names of the fused tensors, the G axis of layer-wise codings."""
    width: int = 0
    """Width of the features that the router reads; 0: it reads none."""


def adam(router: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Adam with a constant learning rate and torch's other defaults."""
    return torch.optim.Adam(router.parameters(), lr=rate)


@dataclass(frozen=True)
class TrainingPlan:
    """Training plan of a router: what is learned, on which data, and how."""

    router: nn.Module
    """Features [B, d] -> coding [B, T, G]; if it reads no features, None -> [1, T, G]."""
    learning_rate: float
    steps: int
    batch_size: int
    """Images of each task in a step."""
    adapt_on: UnlabelledSplit
    save_every: int
    """Steps between checkpoints."""
    extractor: str | None = None
    """Feature extractor; None: the router reads no features, and all tasks share one coding."""
    squash: bool = False
    """Whether images are resized to a square before the extractor's preprocessing."""
    batch_mean: bool = True
    """Train with the mean coding of each batch (one model for each task); False: one for each
    sample."""
    rate_per_norm: bool = False
    """Divide the learning rate by the mean L1 norm of the input of the router's last layer."""
    gate: str | None = None
    """Gate file to start from; None: the router's initial weights."""
    trim: Trim = field(default_factory=Trim)
    tasks_at_once: int | None = None
    """If tasks share a coding: tasks in one forward pass; None: all."""
    entropy_weight: float = 0.0
    """Weight of Σ_t c_t·ln c_t, averaged over groups, for a coding on the simplex."""
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer] = adam
    """(router, learning rate) -> what makes the steps. What it keeps for each parameter is a
    checkpoint's Adam moments or nothing; the rest is in the router's buffers. Default Adam."""

    @property
    def shared(self) -> bool:
        """Whether all tasks share one coding, and so one forward pass."""
        return self.extractor is None


@dataclass(frozen=True)
class MicroBatch:
    """Micro-batch: one forward and backward pass of rows of some tasks.

    The coding has one model, one for each row, or several models that take equally many consecutive
    rows each.
    """

    rows: Mapping[str, Tensor]
    """Task -> int64 [B], row numbers in the split that is adapted to."""
    coding: Coding
    """[M, T, G]; each of the M models takes B/M of the B rows."""
    beta: Tensor | None = None
    """Inverse temperature of the logits; the loss is then their cross-entropy with the labels.
    None: the loss is the entropy of the predictions."""


@dataclass(frozen=True)
class Gradient:
    """Losses and gradients of a micro-batch."""

    losses: Mapping[str, float]
    """Task -> mean loss over its rows, in nats."""
    coding: Tensor
    """∂(Σ_tasks loss)/∂coding, in the coding's shape."""
    beta: float = 0.0
    """∂(Σ_tasks loss)/∂beta."""


ComputeGradients: TypeAlias = Callable[[Sequence[MicroBatch]], Sequence[Gradient]]
"""Micro-batches -> their gradients, in order; implemented by the object that holds the experts."""


@runtime_checkable
class Tempered(Protocol):
    """A router that is trained with labels and learns an inverse temperature of the logits."""

    def beta(self) -> Tensor:
        """The inverse temperature, a scalar."""
        ...


def temperature(router: nn.Module) -> Tensor | None:
    """Inverse temperature β of a router that is trained with labels; None for any other router.

    With β the loss is the cross-entropy of β·logits; without, the entropy of predictions.
    """
    return router.beta() if isinstance(router, Tempered) else None


def micro_batches(
    learning: TrainingPlan,
    sizes: Mapping[str, int],
    features: Mapping[str, Tensor],
    step: int,
    seed: int,
    stacked: int = 0,
) -> list[MicroBatch]:
    """The micro-batches of one step.

    Tasks that share a coding are in one. Else each task has models of its own: one for the mean
    coding of its rows, or one for each row. Consecutive tasks are stacked: all their models run in
    one pass.

    Args:
        learning: the training plan.
        sizes: task -> number of rows of the split that is adapted to.
        features: task -> features [N, d]; not read if `learning.shared`.
        step: from 0.
        seed: of the drawn rows.
        stacked: most rows in one pass of several tasks' models; 0 (default): a pass for each task.
    """
    rows = {
        task: draw(size, learning.batch_size, step, seed + 7919 * at)
        for at, (task, size) in enumerate(sizes.items())
    }
    if learning.shared:
        coding, names = learning.router(None), list(rows)
        beta = temperature(learning.router)
        return [
            MicroBatch({name: rows[name] for name in part}, coding, beta)
            for part in chunked(names, learning.tasks_at_once or len(names))
        ]
    found = []
    for names in stacks(rows, learning.batch_size, stacked):
        codings = [learning.router(features[task][rows[task]]) for task in names]
        if learning.batch_mean:
            codings = [coding.mean(0, keepdim=True) for coding in codings]
        found.append(MicroBatch({task: rows[task] for task in names}, torch.cat(codings)))
    return found


def stacked_rows(row_bytes: int, device: str) -> int:
    """Most rows in one pass of several tasks' models.

    It depends on the model and the kind of device only, so the same sweep has the same passes, and
    the same bits, wherever it runs.

    Args:
        row_bytes: activations that autograd keeps of a row.
        device: type of the device, such as "cpu".

    >>> stacked_rows(1 << 20, "cpu")
    64
    """
    return STACKED.get(device, STACKED["cuda"]) // max(row_bytes, 1)


def stacks(tasks: Iterable[str], batch_size: int, most: int) -> list[list[str]]:
    """Tasks of each pass: consecutive ones with up to `most` rows in all, or one.

    >>> stacks("abc", batch_size=4, most=8)
    [['a', 'b'], ['c']]
    """
    return chunked(list(tasks), most // batch_size)


def chunked(tasks: Sequence[str], count: int) -> list[list[str]]:
    """Consecutive tasks, `count` in each chunk; at least one.

    >>> chunked("abcde", 2)
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    each = max(count, 1)
    return [list(tasks[start : start + each]) for start in range(0, len(tasks), each)]


def not_finite(step: int, task: str, loss: float, learning_rate: float) -> InputError:
    """The error for a loss, or the gradient of a finite loss, that is NaN or infinite.

    >>> print(not_finite(3, "mnist", float("nan"), 0.1))
    step 3: task 'mnist': loss nan is not finite; learning_rate 0.1 may be too large
    """
    what = "the gradient of " if math.isfinite(loss) else ""
    why = f"learning_rate {learning_rate:g} may be too large"
    if step == 0:
        why = "nothing is learned yet: the weights of base or experts make it so"
    return InputError(f"step {step}: task {task!r}: {what}loss {loss} is not finite; {why}")


def not_finite_task(micro_batch: MicroBatch, gradient: Gradient) -> str | None:
    """The first task whose loss, or else the gradient of whose model, is not finite; None: none."""
    bad = [task for task, loss in gradient.losses.items() if loss - loss != 0]
    if bad:
        return bad[0]
    finite = gradient.coding.isfinite().flatten(1).all(1)
    if bool(finite.all()):
        return None
    tasks = list(micro_batch.rows)
    return tasks[int((~finite).int().argmax()) * len(tasks) // len(finite)]


def learn_step(
    learning: TrainingPlan,
    optimizer: torch.optim.Optimizer,
    given: Sequence[MicroBatch],
    compute_gradients: ComputeGradients,
    step: int,
) -> dict[str, float]:
    """One optimiser step on the sum over tasks of the mean losses; returns task -> loss.

    Args:
        learning: the training plan.
        optimizer: of the router's parameters.
        given: the micro-batches of the step.
        compute_gradients: computes losses and gradients of micro-batches.
        step: from 0, for messages.

    Raises:
        InputError: a loss or gradient that is NaN or infinite (task and step are named); then
            nothing was updated.
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
        task = not_finite_task(micro_batch, gradient)
        if task is not None:
            raise not_finite(step, task, gradient.losses[task], learning.learning_rate)
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
