"""Tip-Adapter: a key-value cache of few labelled images, added to a zero-shot head.

Axes: N queries, NK keys (K shots of C classes), D embedding width, E views of an image.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.errors import InputError
from fusion.logits.cosine_head import logits
from fusion.logits.dataset import check_labels, check_matrix, unit_rows
from fusion.task_vectors.task_vectors import accumulator


def few_shot(labels: Tensor, shots: int, seed: int, classes: int | None = None) -> Tensor:
    """Draw `shots` rows of each class: int64 [≤ C·shots], class by class.

    Rows are drawn without replacement, or with replacement if a class has fewer rows; a class
    without rows gives none. The rows of a class depend only on its own rows and the seed, and fewer
    shots are the first of more.

    Args:
        labels: int64 [N].
        shots: rows of each class.
        seed: of the draw.
        classes: C. Default: the largest label + 1.

    Raises:
        InputError: fewer than one shot, no rows, a label outside.

    Source: Zhang et al. 2022, arXiv:2207.09519, and its code. Deviation: the code draws with
    Python's generator, so it draws other rows.

    >>> labels = torch.tensor([1, 0, 0, 1, 0, 0])
    >>> rows = few_shot(labels, 2, seed=0)
    >>> labels[rows].tolist()
    [0, 0, 1, 1]
    """
    if shots < 1:
        raise InputError(f"shots: {shots}; 1 or more needed")
    if len(labels) == 0:
        raise InputError("labels: no rows; 1 or more needed")
    check_labels("labels", labels, len(labels), classes)
    classes = int(labels.max()) + 1 if classes is None else classes
    drawn = []
    for number in range(classes):
        rows = (labels == number).nonzero()[:, 0].cpu()
        if len(rows) == 0:
            continue
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        if len(rows) < shots:
            picks = torch.randint(len(rows), (shots,), generator=generator)
        else:
            picks = torch.randperm(len(rows), generator=generator)[:shots]
        drawn.append(rows[picks])
    return torch.cat(drawn)


def cache_keys(views: Tensor) -> Tensor:
    """Cache keys: the mean of the views' features, normalised: K = n(mean_e u_e).

    A view with a longer feature has more weight, as in the released code.

    Args:
        views: [E, NK, D], embeddings of E views of each image, not normalised.

    Returns:
        Keys [NK, D] of length 1, in float32 (float64 where views are).

    Raises:
        InputError: another shape, NaN or infinity, views that cancel each other.

    >>> cache_keys(torch.tensor([[[3.0, 0.0]], [[0.0, 4.0]]])).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    if views.ndim != 3 or len(views) == 0:
        raise InputError(f"views: {list(views.shape)}; [E, NK, D] with 1 view or more needed")
    for view in views:
        check_matrix("views", view)
    return unit_rows("views: their mean", views.to(accumulator(views.dtype)).mean(0))


def cache_values(labels: Tensor, classes: int) -> Tensor:
    """Cache values V [NK, C], float32: one-hot labels of the keys.

    Raises:
        InputError: a label outside.

    >>> cache_values(torch.tensor([1, 0]), 2).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    check_labels("labels", labels, len(labels), classes)
    return torch.nn.functional.one_hot(labels, classes).float()


def affinities(queries: Tensor, keys: Tensor) -> Tensor:
    """Affinities n(q)Kᵀ [N, NK]: cosines if keys have length 1 (trained keys may not).

    Args:
        queries: [N, D], embeddings, not normalised.
        keys: [NK, D], used as they are.

    Raises:
        InputError: wrong shapes or widths, NaN or infinity, a query of zeros.
    """
    check_matrix("queries", queries)
    check_matrix("keys", keys, width=queries.shape[1])
    dtype = accumulator(queries.dtype, keys.dtype)
    return unit_rows("queries", queries).to(dtype) @ keys.to(dtype).T


def cache_logits(affinity: Tensor, values: Tensor, beta: float) -> Tensor:
    """Logits of the cache, exp(−β(1 − affinity))V [N, C]: near keys vote more for their class.

    Differentiable in `affinity`. Arguments are not checked; `tip_logits` checks them.
    """
    return ((affinity - 1) * beta).exp() @ values


def tip_logits(
    zero_shot_logits: Tensor,
    affinity: Tensor,
    values: Tensor,
    *,
    alpha: Annotated[float, Interval(ge=0)] = 1.17,
    beta: Annotated[float, Interval(ge=0)] = 1.0,
) -> Tensor:
    """Tip-Adapter's logits from zero-shot logits and affinities: z = z₀ + α·exp(−β(1 − affinity))V.

    Args:
        zero_shot_logits: z₀ [N, C], the head's scale included (100 for OpenAI's models): α is
            relative to it.
        affinity: [N, NK].
        values: V [NK, C], one-hot labels.
        alpha: weight of the cache. Default 1.17: the released code's first value for ImageNet.
            0: zero-shot, to the bit.
        beta: sharpness. Default 1: the released code's first value. β→∞ leaves keys that equal
            the query.

    Returns:
        Logits [N, C], in float32 (float64 where an input is).

    Raises:
        InputError: other shapes, NaN or infinity.

    Source: Zhang et al. 2022, arXiv:2207.09519, eq. 5-6, and its code.

    >>> near = torch.tensor([[1.0, 0.0]])
    >>> tip_logits(torch.zeros(1, 2), near, torch.eye(2), alpha=1, beta=0).tolist()
    [[1.0, 1.0]]
    """
    check_plane(zero_shot_logits, affinity, values)
    dtype = accumulator(zero_shot_logits.dtype, affinity.dtype, values.dtype)
    cache = cache_logits(affinity.to(dtype), values.to(dtype), beta)
    return zero_shot_logits.to(dtype) + alpha * cache


def check_plane(zero_shot_logits: Tensor, affinity: Tensor, values: Tensor) -> None:
    """Check that zero-shot logits, affinities and values fit each other and are finite.

    Raises:
        InputError: the tensor is named.
    """
    check_matrix("zero-shot logits", zero_shot_logits)
    check_matrix("affinity", affinity, rows=len(zero_shot_logits))
    check_matrix("values", values, rows=affinity.shape[1], width=zero_shot_logits.shape[1])


def tip_adapter(
    embeddings: Tensor,
    head: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    alpha: Annotated[float, Interval(ge=0)] = 1.17,
    beta: Annotated[float, Interval(ge=0)] = 1.0,
) -> Tensor:
    """Tip-Adapter's logits from embeddings: n(z)Wᵀ + α·exp(−β(1 − n(z)Kᵀ))V; no training.

    Args:
        embeddings: z [N, D], not normalised.
        head: W [C, D], zero-shot head, logit scale included.
        keys: K [NK, D], from `cache_keys`.
        values: V [NK, C], from `cache_values`.
        alpha: as for `tip_logits`.
        beta: as for `tip_logits`.

    Returns:
        Logits [N, C].

    Raises:
        InputError: wrong shapes or widths, NaN or infinity.

    Source: as `tip_logits`. Deviation: the authors tuned α and β for each data set; here there is
    one default, and `grid_search.tip_surface` to choose them on a separate split.
    """
    affinity = affinities(embeddings, keys)
    check_matrix("head", head, width=embeddings.shape[1])
    dtype = accumulator(embeddings.dtype, head.dtype)
    zero_shot = logits(embeddings.to(dtype), head.to(dtype))
    return tip_logits(zero_shot, affinity, values, alpha=alpha, beta=beta)
