"""CaFo: fuse several heads, weighted for each row by their agreement with a reference head.

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
    """CaFo: add heads to zero-shot logits, weighted by their agreement with a reference head.

    z = z₀ + α·Σ_m w_m ĉ_m with w = softmax_m(⟨ĉ_m, r̂⟩/(T·C)), for each row. ĉ are a head's logits,
    normalised over classes, and r̂ the reference's. M = 1 is Tip-Adapter's rule on normalised
    logits.

    Args:
        zero_shot_logits: z₀ [N, C], the head's scale included.
        heads: c [M, N, C], logits of each head (caches, linear probes, other models).
        alpha: weight of the fused heads. Default 1; the code uses 0.22 to 4, by data set.
        temperature: T. Infinity: the mean of all heads; 0: the head that agrees most, the first of
            equal ones. Default 1, ours.
        normalisation: `zscore` (default, the code's): (c − mean)/std, std unbiased. `softmax`:
            probabilities. `l2`: c/‖c‖ (in the code too, where it overwrites its input). Logits that
            cannot be normalised (all classes equal) become zeros.
        reference: index of the reference head. Default: zero-shot, the paper's best.
        compat: `cafo`: s/T without C, the released code at T = 1. Default none.

    Returns:
        Logits [N, C], in float32 (float64 where an input is).

    Raises:
        InputError: wrong shapes, NaN or infinity, fewer than two classes, no head, an unknown
            reference.

    Source: Zhang et al. 2023, arXiv:2303.02151, §3.3, and its code, which uses z-scores although
    the paper's formula does not. Deviation: dot products of z-scores are (C − 1)·correlation.
    Without division by C the softmax selects one head, the more so the more classes there are. Dot
    products of probabilities and of unit vectors do not grow with C, and are not divided.

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
    """Normalised heads ĉ [M, N, C] and agreements ⟨ĉ_m, r̂⟩ [M, N], independent of T and α."""
    hats = over_classes(heads, normalisation)
    guide = over_classes(zero_shot, normalisation) if reference is None else hats[reference]
    return hats, torch.einsum("mnc,nc->mn", hats, guide)


def mixture(hats: Tensor, agreement: Tensor, temperature: float) -> Tensor:
    """Weighted mean of heads, Σ_m softmax_m(s/T)·ĉ_m [N, C]; T = 0 takes the first largest s."""
    # The largest is subtracted first: s/T alone overflows for small T.
    gaps = agreement - agreement.amax(0)
    if temperature == 0:
        weights = torch.zeros_like(gaps).scatter_(0, agreement.argmax(0, keepdim=True), 1.0)
    else:
        weights = (gaps / temperature).softmax(0)
    return torch.einsum("mn,mnc->nc", weights, hats)


def divisor(classes: int, normalisation: Normalisation, compat: Compat) -> int:
    """Factor of T: C for z-scores; 1 otherwise, and in the released code."""
    return classes if normalisation == "zscore" and compat is None else 1


def over_classes(logits: Tensor, normalisation: Normalisation) -> Tensor:
    """Normalise logits [..., C] over their last axis; returns a new tensor.

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
    """Quotient; zeros where the denominator is zero."""
    return torch.where(denominator == 0, 0.0, numerator / denominator)


def check_heads(zero_shot: Tensor, heads: Tensor, reference: int | None) -> None:
    """Check that heads and zero-shot logits fit each other and are finite.

    Raises:
        InputError: the tensor is named.
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
