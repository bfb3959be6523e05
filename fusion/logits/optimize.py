"""Train small tensors on cached features with AdamW, and keep the best epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusion.errors import InputError


@dataclass(frozen=True)
class Epoch:
    """Loss and accuracy of one epoch."""

    epoch: int
    """Number of the epoch; 0: before any step."""
    loss: float | None
    """Mean loss over the training rows during the epoch; None for epoch 0."""
    accuracy: float
    """Accuracy on the selection rows after the epoch."""


def train(
    weights: Sequence[Tensor],
    loss: Callable[[Tensor], Tensor],
    accuracy: Callable[[], float],
    *,
    rows: int,
    learning_rate: float,
    eps: float,
    weight_decay: float,
    batch_size: int,
    epochs: int,
    seed: int,
) -> tuple[int, tuple[Epoch, ...]]:
    """Minimise `loss` with AdamW and a cosine learning rate; keep the weights of the best epoch.

    The best epoch is the first one with the highest accuracy. Epoch 0, the initial weights, is a
    candidate too: if training does not help on the selection rows, the initial weights are kept.

    Args:
        weights: leaf tensors that require gradients; they are changed in place.
        loss: row numbers int64 [B] -> mean loss over these rows.
        accuracy: accuracy on the selection rows with the current weights; called without gradients.
        rows: number of training rows; the last batch of an epoch may be smaller.
        learning_rate: of the first step; it decreases to 0 along a cosine, step by step.
        eps: AdamW's ε.
        weight_decay: AdamW's weight decay.
        batch_size: rows of a step.
        epochs: passes over all rows.
        seed: of the shuffles.

    Returns:
        The number of the best epoch, and the history from epoch 0.

    Raises:
        InputError: the loss is NaN or infinite.
    """
    optimizer = torch.optim.AdamW(
        list(weights), lr=learning_rate, eps=eps, weight_decay=weight_decay
    )
    total, step = epochs * math.ceil(rows / batch_size), 0
    best, kept = 0, [weight.detach().clone() for weight in weights]
    history = [Epoch(0, None, measured(accuracy))]
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in torch.split(draw(rows, rows, epoch - 1, seed), batch_size):
            optimizer.param_groups[0]["lr"] = cosine(learning_rate, step, total)
            optimizer.zero_grad()
            value = loss(batch)
            if not math.isfinite(value.item()):
                raise InputError(
                    f"loss: {value.item()} in epoch {epoch}; a learning_rate below"
                    f" {learning_rate:g} needed"
                )
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(value.item() * len(batch))
            step += 1
        history.append(Epoch(epoch, math.fsum(losses) / rows, measured(accuracy)))
        if history[-1].accuracy > history[best].accuracy:
            best, kept = epoch, [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
    return best, tuple(history)


def draw(size: int, batch: int, step: int, seed: int) -> Tensor:
    """Row numbers of one training step: int64 [batch], from shuffles of 0 … size − 1.

    The result depends on the arguments alone, so a resumed run draws the same rows. Every epoch is
    shuffled anew. Deviation: the original DAWE code repeats the order of its first epoch.

    Args:
        size: number of rows.
        batch: rows of a step.
        step: number of the step, from 0.
        seed: of the shuffles.

    >>> sorted(draw(4, 2, 0, 7).tolist() + draw(4, 2, 1, 7).tolist())
    [0, 1, 2, 3]
    """
    first, last = step * batch, (step + 1) * batch
    drawn = []
    for epoch in range(first // size, (last - 1) // size + 1):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(size, generator=generator)
        drawn.append(order[max(first - epoch * size, 0) : last - epoch * size])
    return torch.cat(drawn)


def cosine(learning_rate: float, step: int, total: int) -> float:
    """Cosine schedule of the learning rate: ½·lr·(1 + cos(π·step/total)).

    >>> cosine(1.0, 0, 4), round(cosine(1.0, 2, 4), 12), cosine(1.0, 4, 4)
    (1.0, 0.5, 0.0)
    """
    return 0.5 * learning_rate * (1 + math.cos(math.pi * step / total))


def measured(accuracy: Callable[[], float]) -> float:
    """Call `accuracy` without gradients."""
    with torch.no_grad():
        return accuracy()


def top1_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Fraction of rows whose largest logit is that of the label; the first of equal logits counts.

    >>> top1_accuracy(torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([0, 1]))
    0.5
    """
    return int((logits.argmax(-1) == labels).sum()) / len(labels)
