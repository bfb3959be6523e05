"""Tip-Adapter-F: learned cache keys; epoch, α and β are selected on held-out rows."""

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
from fusion.logits.dataset import Labelled, apart, check_labels, check_matrix, directions
from fusion.logits.optimize import Epoch, share, train
from fusion.methods.classifiers.grid_search import Surface, tip_surface
from fusion.methods.classifiers.tip_adapter import affinities, cache_logits, tip_logits

BETAS = tuple(np.geomspace(0.1, 50, 60).tolist())
"""Searched by default: from the smallest to the largest β that the authors' ranges have."""

LARGEST = 50.0
"""Largest α searched: the end of the widest of the authors' ranges."""


@dataclass(frozen=True, eq=False)
class TipAdapterF:
    """Learned keys, for `tip_adapter(embeddings, head, keys, values, alpha=…, beta=…)`."""

    keys: Tensor
    """[NK, D], not of length 1 any more: affinities may exceed 1."""
    alpha: float
    beta: float
    accuracy: float
    """Of `select`, with these keys, α and β."""
    epoch: int
    """The best on `select`, at the α and β that it was learned with; 0: the keys as they came."""
    history: tuple[Epoch, ...]
    surface: Surface
    """What α and β were chosen from."""


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
    """min_K mean CE(n(z)Wᵀ + α·exp(−β(1 − n(z)Kᵀ))V, y) over `fit`; V and W are frozen.

    AdamW, its rate going down to 0 by a cosine a step. The best epoch is chosen on `select` at the
    given α and β; then α and β are, with the keys of that epoch. Never on what is reported.

    Args:
        fit: embeddings to learn from and their labels: of the keys' images, or other views of them.
        select: what is chosen on.
        head: W [C, D], zero-shot head, logit scale included.
        keys: K [NK, D] to start from, of `cache_keys`; not changed.
        values: V [NK, C], of `cache_values`.
        alpha: while learning. Default 1.17: the code's for ImageNet.
        beta: while learning. Default 1: the code's.
        learning_rate: default 1e-3: the code's.
        eps: AdamW's. Default 1e-4: the code's, which needs it for float16. Keys are float32 here,
            and 1e-8 works too: small gradients then count as much as large ones.
        weight_decay: default 0.01: AdamW's in torch, which the code leaves.
        batch_size: default 256: the code's.
        epochs: default 20: the code's (EuroSAT: 100).
        betas: β to choose from; `beta` is tried as well.
        alphas: a grid of α to choose from, ascending; `alpha` is tried as well. Default: exactly,
            from 0 to 50 (to `alpha` where that is larger).
        seed: of the shuffles.

    Raises:
        InputError: `fit` and `select` are the same rows, other shapes or widths, a label outside,
            NaN or infinity, a loss that leaves the numbers.

    Source: Zhang et al. 2022, arXiv:2207.09519, §3.3, and its code.
    Deviations: the code takes the best epoch on the test split, then prints the better of that and
    the search; here the keys as they came count as epoch 0, the first of equal epochs is taken,
    and the result on `select` is at least that of every epoch. The code draws a new crop of each
    image every epoch; here embeddings are computed once (give more views as more rows).
    """
    apart(fit, select)
    width, classes = fit.features.shape[1], head.shape[0]
    check_matrix("head", head, width=width)
    check_matrix("keys", keys, width=width)
    check_matrix("values", values, rows=len(keys), width=classes)
    check_matrix(f"{select.split}: features", select.features, width=width)
    for rows in (fit, select):
        check_labels(f"{rows.split}: labels", rows.labels, len(rows), classes)

    seen = directions(f"{fit.split}: features", fit.features)
    other = directions(f"{select.split}: features", select.features)
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
        return share(elsewhere + alpha * cache, select.labels)

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
    reached = share(chosen, select.labels)
    return TipAdapterF(learned, best.alpha, best.value, reached, epoch, history, found)
