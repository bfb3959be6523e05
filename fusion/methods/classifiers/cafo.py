"""CaFo: fusion of several heads, weighted for each row by their agreement with a reference.

Axes: M heads, N rows, C classes.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.errors import InputError
from fusion.logits.dataset import check_matrix
from fusion.task_vectors.task_vectors import accumulator

Normalisation: TypeAlias = Literal["zscore", "softmax", "l2"]
Compat: TypeAlias = Literal[None, "cafo"]


def cafo(
    zero_shot_logits: Tensor,
    heads: Tensor,
    *,
    alpha: Annotated[float, Interval(ge=0)] = 1.0,
    temperature: Annotated[float, Interval(ge=0)] = 1.0,
    normalisation: Normalisation = "zscore",
    reference: Annotated[int | None, Interval(ge=0)] = None,
    compat: Compat = None,
) -> Tensor:
    """z = z₀ + α·Σ_m w_m ĉ_m, w = softmax_m(⟨ĉ_m, r̂⟩/(T·C)), row by row.

    ĉ is a head's logits, normalised over classes; r̂ the reference's. M = 1 is Tip-Adapter's rule
    on normalised logits.

    Args:
        zero_shot_logits: z₀ [N, C], the head's scale included.
        heads: c [M, N, C], logits of each head (caches, linear probes, other models').
        alpha: weight of the fused heads; the code's lie between 0.22 and 4 by data set.
        temperature: T. Infinite: the mean of all heads; 0: the head that agrees most, the first
            of equal ones. Default 1: ours.
        normalisation: `zscore`: (c − mean)/std, std unbiased, the code's. `softmax`: probabilities.
            `l2`: c/‖c‖ (the code has it too, and overwrites its input). What cannot be normalised
            (all classes alike) becomes zeros: a head that says nothing.
        reference: the head that weighs, by index. Default: zero-shot, the paper's best.
        compat: `cafo`: s/T without C, the released code at T = 1.

    Returns:
        Logits [N, C], in float32 (float64 where an input is).

    Raises:
        InputError: other shapes, NaN or infinity, fewer than two classes, no head, no such
            reference.

    Source: Zhang et al. 2023, arXiv:2303.02151, §3.3, and its code, which z-scores where
    the paper's formula does not.
    Deviation: dot products of z-scores are (C − 1)·correlation, so that without the division by C
    the softmax picks one head, ever harder the more classes there are. Dot products of
    probabilities and of unit vectors do not grow with C, and are not divided by it.

    >>> heads = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> cafo(torch.tensor([[9.0, 0.0]]), heads, temperature=0, normalisation="l2").tolist()
    [[10.0, 0.0]]
    """
    check_heads(zero_shot_logits, heads, reference)
    dtype = accumulator(zero_shot_logits.dtype, heads.dtype)
    zero_shot, heads = zero_shot_logits.to(dtype), heads.to(dtype)
    hats, agreement = agreements(zero_shot, heads, normalisation, reference)
    classes = divisor(heads.shape[-1], normalisation, compat)
    return zero_shot + alpha * mixture(hats, agreement, temperature * classes)


def agreements(
    zero_shot: Tensor, heads: Tensor, normalisation: Normalisation, reference: int | None
) -> tuple[Tensor, Tensor]:
    """ĉ [M, N, C] and ⟨ĉ_m, r̂⟩ [M, N]: all that does not depend on T and α."""
    hats = over_classes(heads, normalisation)
    guide = over_classes(zero_shot, normalisation) if reference is None else hats[reference]
    return hats, torch.einsum("mnc,nc->mn", hats, guide)


def mixture(hats: Tensor, agreement: Tensor, temperature: float) -> Tensor:
    """Σ_m softmax_m(s/T)·ĉ_m [N, C]; T = 0 picks the first of the largest s."""
    # The largest is subtracted first: s/T alone overflows for small T.
    gaps = agreement - agreement.amax(0)
    if temperature == 0:
        weights = torch.zeros_like(gaps).scatter_(0, agreement.argmax(0, keepdim=True), 1.0)
    else:
        weights = (gaps / temperature).softmax(0)
    return torch.einsum("mn,mnc->nc", weights, hats)


def divisor(classes: int, normalisation: Normalisation, compat: Compat) -> int:
    """What T is multiplied by: C for z-scores, 1 otherwise and in the released code."""
    return classes if normalisation == "zscore" and compat is None else 1


def over_classes(logits: Tensor, normalisation: Normalisation) -> Tensor:
    """Logits [..., C] normalised over their last axis; a new tensor.

    >>> over_classes(torch.tensor([1.0, 2.0, 3.0]), "zscore").tolist()
    [-1.0, 0.0, 1.0]
    """
    if normalisation == "softmax":
        return logits.softmax(-1)
    if normalisation == "l2":
        return ratio(logits, torch.linalg.vector_norm(logits, dim=-1, keepdim=True))
    centred = logits - logits.mean(-1, keepdim=True)
    # Equal logits: their mean may round to another number, so their spread is asked for itself.
    spread = (logits.amax(-1, keepdim=True) != logits.amin(-1, keepdim=True)).to(logits.dtype)
    return ratio(centred, logits.std(-1, keepdim=True) * spread)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Their quotient; zeros where the denominator is zero."""
    return torch.where(denominator == 0, 0.0, numerator / denominator)


def check_heads(zero_shot: Tensor, heads: Tensor, reference: int | None) -> None:
    """Refuse shapes that do not fit each other, and NaN.

    Raises:
        InputError: it names the tensor.
    """
    check_matrix("zero-shot logits", zero_shot)
    if zero_shot.shape[1] < 2:
        raise InputError("zero-shot logits: 1 class; 2 or more needed")
    if heads.ndim != 3 or len(heads) == 0:
        raise InputError(f"heads: {list(heads.shape)}; [M, N, C] with 1 head or more needed")
    for number, head in enumerate(heads):
        check_matrix(f"head {number}", head, rows=len(zero_shot), width=zero_shot.shape[1])
    if reference is not None and not 0 <= reference < len(heads):
        raise InputError(f"reference: {reference}; 0 to {len(heads) - 1} allowed, or none")
