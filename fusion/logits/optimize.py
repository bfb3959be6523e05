"""Train small tensors on cached features with AdamW; keeps the best epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusion.errors import InputError


@dataclass(frozen=True)
class Epoch:
    """Results of one epoch."""

    epoch: int
    """0: before any step."""
    loss: float | None
    """Mean over the rows of `fit`, while they were learned from; None for epoch 0."""
    accuracy: float
    """Of `select`, after the epoch."""


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
    """Minimise `loss` by AdamW, cosine to 0 a step; leave in `weights` what the best epoch had.

    The best epoch is the first of the highest accuracy. Epoch 0, the weights as they came, counts:
    where learning does not help on `select`, nothing was learned.

    Args:
        weights: leaves that require gradients; changed in place.
        loss: int64 [B] rows -> mean loss over them.
        accuracy: of `select`, with the weights as they are; called without gradients.
        rows: N of `fit`; the last batch of an epoch may be shorter.
        learning_rate: at the first step.
        eps: AdamW's.
        weight_decay: AdamW's.
        batch_size: rows a step.
        epochs: passes over all rows.
        seed: of the shuffles.

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
    """Rows of one task at one step: int64 [batch], from endless shuffles of 0 … size − 1.

    A function of its arguments alone, so that a resumed run draws what it would have drawn. Every
    epoch is shuffled anew (the original replays its first).

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
    """½·lr·(1 + cos(π·step/total)).

    >>> cosine(1.0, 0, 4), round(cosine(1.0, 2, 4), 12), cosine(1.0, 4, 4)
    (1.0, 0.5, 0.0)
    """
    return 0.5 * learning_rate * (1 + math.cos(math.pi * step / total))


def measured(accuracy: Callable[[], float]) -> float:
    """`accuracy()` without gradients."""
    with torch.no_grad():
        return accuracy()


def share(logits: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest logit (the first of equal ones) is the label's.

    >>> share(torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([0, 1]))
    0.5
    """
    return int((logits.argmax(-1) == labels).sum()) / len(labels)
