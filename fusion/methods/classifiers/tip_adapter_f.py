"""Tip-Adapter-F: trained cache keys; epoch, α and β are selected on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn.functional import cross_entropy

from fusion.logits.cosine_head import logits
from fusion.logits.dataset import (
    Labelled,
    check_different_rows,
    check_labels,
    check_matrix,
    unit_rows,
)
from fusion.logits.optimize import Epoch, top1_accuracy, train
from fusion.methods.classifiers.grid_search import Surface, tip_surface
from fusion.methods.classifiers.tip_adapter import affinities, cache_logits, tip_logits

BETAS = tuple(np.geomspace(0.1, 50, 60).tolist())
"""Default values of β in the search: from the smallest to the largest of the authors' ranges."""

LARGEST = 50.0
"""Largest α in the search: the end of the widest of the authors' ranges."""


@dataclass(frozen=True, eq=False)
class TipAdapterF:
    """Trained keys, for `tip_adapter(embeddings, head, keys, values, alpha=…, beta=…)`."""

    keys: Tensor
    """[NK, D], no longer of length 1, so affinities may exceed 1."""
    alpha: float
    beta: float
    accuracy: float
    """Accuracy on `select` with these keys, α and β."""
    epoch: int
    """Best epoch on `select`, with the α and β of the training; 0: the initial keys."""
    history: tuple[Epoch, ...]
    surface: Surface
    """Accuracy over α and β, from which they were chosen."""


def tip_adapter_f(
    fit: Labelled,
    select: Labelled,
    head: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    alpha: Annotated[float, Interval(ge=0)] = 1.17,
    beta: Annotated[float, Interval(ge=0)] = 1.0,
    learning_rate: Annotated[float, Interval(gt=0)] = 1e-3,
    eps: Annotated[float, Interval(gt=0)] = 1e-4,
    weight_decay: Annotated[float, Interval(ge=0)] = 0.01,
    batch_size: Annotated[int, Interval(ge=1)] = 256,
    epochs: Annotated[int, Interval(ge=0)] = 20,
    betas: Sequence[float] = BETAS,
    alphas: Sequence[float] | None = None,
    seed: int = 0,
) -> TipAdapterF:
    """Tip-Adapter-F: train the cache keys K; V and W are frozen.

    Minimises mean CE(n(z)Wᵀ + α·exp(−β(1 − n(z)Kᵀ))V, y) over `fit` by AdamW with a cosine learning
    rate. The best epoch is chosen on `select` at the given α and β; then α and β are chosen with
    the keys of that epoch. Nothing is chosen on the reported rows.

    Args:
        fit: embeddings and labels to train on: of the keys' images, or other views of them.
        select: rows for the choice of epoch, α and β.
        head: W [C, D], zero-shot head, logit scale included.
        keys: initial K [NK, D], from `cache_keys`; not changed.
        values: V [NK, C], from `cache_values`.
        alpha: α during training. Default 1.17, the code's for ImageNet.
        beta: β during training. Default 1, the code's.
        learning_rate: AdamW's. Default 1e-3, the code's.
        eps: AdamW's. Default 1e-4, the code's, which needs it for float16. Keys are float32 here,
            where 1e-8 works too; small gradients then count as much as large ones.
        weight_decay: AdamW's. Default 0.01, torch's default, as in the code.
        batch_size: default 256, the code's.
        epochs: default 20, the code's (EuroSAT: 100).
        betas: values of β to choose from; `beta` is tried as well.
        alphas: ascending grid of α to choose from; `alpha` is tried as well. Default: the exact
            best α from 0 to 50 (to `alpha` if that is larger).
        seed: of the shuffles.

    Raises:
        InputError: `fit` and `select` are the same rows, wrong shapes or widths, a label outside,
            NaN or infinity, a loss that is not finite.

    Source: Zhang et al. 2022, arXiv:2207.09519, §3.3, and its code. Deviations: the code takes the
    best epoch on the test split, then prints the better of that and the search. Here the initial
    keys count as epoch 0, the first of equal epochs is taken, and the result on `select` is at
    least that of every epoch. The code draws a new crop of each image in every epoch; here
    embeddings are computed once (pass more views as more rows).
    """
    check_different_rows(fit, select)
    width, classes = fit.features.shape[1], head.shape[0]
    check_matrix("head", head, width=width)
    check_matrix("keys", keys, width=width)
    check_matrix("values", values, rows=len(keys), width=classes)
    check_matrix(f"{select.split}: features", select.features, width=width)
    for rows in (fit, select):
        check_labels(f"{rows.split}: labels", rows.labels, len(rows), classes)

    seen = unit_rows(f"{fit.split}: features", fit.features)
    other = unit_rows(f"{select.split}: features", select.features)
    dtype = torch.promote_types(seen.dtype, keys.dtype)
    frozen, votes = head.to(dtype), values.to(dtype)
    seen, other = seen.to(dtype), other.to(dtype)
    zero_shot, elsewhere = logits(seen, frozen), logits(other, frozen)
    tuned = keys.detach().to(dtype, copy=True).requires_grad_()

    def loss(batch: Tensor) -> Tensor:
        batch = batch.to(seen.device)
        cache = cache_logits(seen[batch] @ tuned.T, votes, beta)
        return cross_entropy(zero_shot[batch] + alpha * cache, fit.labels[batch])

    def accuracy() -> float:
        cache = cache_logits(other @ tuned.T, votes, beta)
        return top1_accuracy(elsewhere + alpha * cache, select.labels)

    epoch, history = train(
        [tuned],
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
    learned = tuned.detach()
    near = affinities(select.features, learned)
    found = tip_surface(
        elsewhere,
        near,
        votes,
        select.labels,
        sorted({*betas, beta}),
        alphas=None if alphas is None else sorted({*alphas, alpha}),
        high=max(LARGEST, alpha),
    )
    best = found.best
    chosen = tip_logits(elsewhere, near, votes, alpha=best.alpha, beta=best.value)
    reached = top1_accuracy(chosen, select.labels)
    return TipAdapterF(learned, best.alpha, best.value, reached, epoch, history, found)
