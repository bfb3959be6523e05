"""CLIP-Adapter: a small residual network on image embeddings, before a zero-shot head.

Axes: B rows, D embedding width, H = D // reduction hidden units, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn.functional import cross_entropy

from fusion.errors import InputError
from fusion.logits.cosine_head import logits
from fusion.logits.dataset import (
    Labelled,
    check_different_rows,
    check_labels,
    check_matrix,
    unit_rows,
)
from fusion.logits.optimize import Epoch, top1_accuracy, train
from fusion.task_vectors.task_vectors import accumulator


@dataclass(frozen=True, eq=False)
class Adapter:
    """Adapter network A(u) = relu(W₂·relu(W₁u)), without biases."""

    down: Tensor
    """W₁ [H, D]."""
    up: Tensor
    """W₂ [D, H]."""
    ratio: float
    """r, the weight of A(u) in the residual sum."""


@dataclass(frozen=True, eq=False)
class ClipAdapter:
    """A trained adapter."""

    adapter: Adapter
    accuracy: float
    """Accuracy on `select`."""
    epoch: int
    """Best epoch on `select`; 0: the initial network."""
    history: tuple[Epoch, ...]


def adapted(embeddings: Tensor, adapter: Adapter) -> Tensor:
    """Adapted embeddings u* = r·A(u) + (1 − r)·u [B, D], not normalised; r = 0 gives u.

    The sum is made before normalisation, so the effect of r depends on the length of u.

    Args:
        embeddings: u [B, D], not normalised.
        adapter: of the same width.

    Raises:
        InputError: another width, NaN or infinity.

    Source: Gao et al. 2021, arXiv:2110.04544, and its code (image side).

    >>> swap = Adapter(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0], [0.0]]), ratio=0.5)
    >>> adapted(torch.tensor([[2.0, 4.0]]), swap).tolist()  # A(u) = (4, 0)
    [[3.0, 2.0]]
    """
    check_matrix("embeddings", embeddings, width=adapter.down.shape[1])
    dtype = accumulator(embeddings.dtype, adapter.down.dtype)
    return blend(embeddings.to(dtype), adapter.down.to(dtype), adapter.up.to(dtype), adapter.ratio)


def blend(u: Tensor, down: Tensor, up: Tensor, ratio: float) -> Tensor:
    """`adapted` without checks."""
    return ratio * ((u @ down.T).relu() @ up.T).relu() + (1 - ratio) * u


def clip_adapter(
    fit: Labelled,
    select: Labelled,
    head: Tensor,
    *,
    ratio: Annotated[float, Interval(ge=0, lt=1)] = 0.2,
    reduction: Annotated[int, Interval(ge=1)] = 4,
    learning_rate: Annotated[float, Interval(gt=0)] = 1e-3,
    eps: Annotated[float, Interval(gt=0)] = 1e-8,
    weight_decay: Annotated[float, Interval(ge=0)] = 0.01,
    batch_size: Annotated[int, Interval(ge=1)] = 256,
    epochs: Annotated[int, Interval(ge=0)] = 100,
    seed: int = 0,
) -> ClipAdapter:
    """CLIP-Adapter: train W₁ and W₂ to minimise mean CE(n(u*)Wᵀ, y) over `fit`; frozen head.

    AdamW with a cosine learning rate; the best epoch is chosen on `select`.

    Args:
        fit: embeddings and labels to train on.
        select: rows for the choice of the epoch.
        head: W [C, D], zero-shot head, logit scale included.
        ratio: r. Default 0.2, the code's. It is below 1, since at 1 a row with A(u) = 0 cannot be
            normalised.
        reduction: D / H. Default 4, the code's.
        learning_rate: AdamW's. Default 1e-3, ours; the released file leaves optimiser and rate to
            the configuration of its library.
        eps: AdamW's. Default 1e-8.
        weight_decay: AdamW's. Default 0.01.
        batch_size: default 256, Tip-Adapter's.
        epochs: default 100, ours (the authors train for 200 on images).
        seed: of W₁, W₂ (uniform within ±1/√fan-in, as in torch's linear layers) and of the
            shuffles.

    Raises:
        InputError: `fit` and `select` are the same rows, wrong widths, a label outside, NaN or
            infinity, fewer dimensions than `reduction`, a loss that is not finite.

    Source: Gao et al. 2021, arXiv:2110.04544, and its code. Deviations: the image side only, as in
    the code; the first of equal epochs is taken, and the initial network counts as epoch 0;
    features computed once replace augmented images.
    """
    check_different_rows(fit, select)
    width, classes = fit.features.shape[1], head.shape[0]
    check_matrix("head", head, width=width)
    check_matrix(f"{select.split}: features", select.features, width=width)
    for rows in (fit, select):
        check_labels(f"{rows.split}: labels", rows.labels, len(rows), classes)
        unit_rows(f"{rows.split}: features", rows.features)
    if width < reduction:
        raise InputError(f"reduction: {reduction}; at most the width {width} allowed")

    dtype = accumulator(fit.features.dtype, head.dtype)
    seen, other, frozen = fit.features.to(dtype), select.features.to(dtype), head.to(dtype)
    draw = torch.Generator().manual_seed(seed)
    down = uniform(width // reduction, width, draw).to(seen.device, dtype).requires_grad_()
    up = uniform(width, width // reduction, draw).to(seen.device, dtype).requires_grad_()

    def loss(batch: Tensor) -> Tensor:
        batch = batch.to(seen.device)
        return cross_entropy(logits(blend(seen[batch], down, up, ratio), frozen), fit.labels[batch])

    def accuracy() -> float:
        return top1_accuracy(logits(blend(other, down, up, ratio), frozen), select.labels)

    epoch, history = train(
        [down, up],
        loss,
        accuracy,
        rows=len(fit),
        learning_rate=learning_rate,
        eps=eps,
        weight_decay=weight_decay,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
    )
    adapter = Adapter(down.detach(), up.detach(), ratio)
    return ClipAdapter(adapter, history[epoch].accuracy, epoch, history)


def uniform(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    """Random matrix initialised as in torch's linear layers: uniform within ±1/√columns."""
    matrix = torch.empty(rows, columns)
    return matrix.uniform_(-(columns**-0.5), columns**-0.5, generator=draw)
