"""Arcee Fusion: take from one expert the entries whose importance is an outlier of its tensor."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.methods.static.coefficients import one_expert
from fusion.task_vectors.elementwise import combine_tensor
from fusion.task_vectors.packed import ENTRIES
from fusion.task_vectors.streaming_topk import row_magnitudes
from fusion.task_vectors.task_vectors import TaskVectors, accumulator
from fusion.task_vectors.threads import SERIAL, in_threads

EPSILON = 1e-8
"""mergekit's epsilon, added to probabilities."""


def arcee_fusion(
    vectors: TaskVectors,
    *,
    expert: str | None = None,
    spread: Annotated[float, Interval(ge=0)] = 1.5,
) -> dict[str, Tensor]:
    """Arcee Fusion: θ_j = θ_e,j where s_j ≥ median(s) + c·(Q₃(s) − Q₁(s)), else θ₀,j; by tensor.

    The importance is s_j = |τ_e,j|·D_r. D_r is the Kullback-Leibler divergence of softmax(θ_e,r)
    from softmax(θ₀,r), with 1e-8 added to all probabilities, for the row r (last axis) of entry j.
    Median and quartiles Q are those of the tensor's d importances, of rank floor(q·(d − 1)) from
    below. Entries of equal importance are taken or left together.

    Args:
        vectors: base and task vectors.
        expert: name of the expert. Default: the only one.
        spread: c, how many interquartile ranges above the median an importance must be. Default
            1.5, mergekit's.

    Raises:
        InputError: an unknown expert, or none named among several.

    A tensor whose importances are all equal (a scalar, whose softmax is 1) is taken whole, as in
    mergekit. Differences: quartiles are exact, where mergekit draws a million entries of larger
    tensors; divergences are summed in float64, where in float32 those of an expert near its base
    are mostly rounding. Memory beside base, task vectors and result: the importances of one tensor.

    Source: mergekit 0.1.4 (`arcee_fusion`).

    >>> base, expert = torch.zeros(1, 5), torch.tensor([[0.1, 0.1, 0.2, 0.1, 3.0]])
    >>> v = TaskVectors.from_state_dicts({"w": base}, {"a": {"w": expert}})
    >>> [round(x, 4) for x in arcee_fusion(v)["w"][0].tolist()]
    [0.0, 0.0, 0.0, 0.0, 3.0]
    """
    chosen = vectors.only(one_expert("arcee_fusion", vectors.tasks, expert))

    def fill(name: str, out: Tensor) -> None:
        base, deltas = chosen.base[name], chosen.deltas[name]
        if not base.numel():
            return
        scores = importance(base, deltas[0]).view(-1)
        cut = threshold(scores, spread)
        combine_tensor(
            out, base, deltas,
            lambda rows, own: torch.where(own >= cut, rows[0], 0.0), beside=[scores],
        )  # fmt: skip

    return chosen.build(fill)


def importance(base: Tensor, delta: Tensor) -> Tensor:
    """s = |τ|·D of one tensor [*shape], at least float32."""
    dtype = accumulator(base.dtype, delta.dtype)
    width = base.shape[-1] if base.ndim else 1
    origin, move = base.reshape(-1, width), delta.reshape(-1, width)
    scores = torch.empty(move.shape, dtype=dtype, device=move.device)

    def work(span: slice) -> None:
        start, step = origin[span].double(), move[span].double()
        p, q = ((row.softmax(1)).add_(EPSILON) for row in (start + step, start))
        divergence = (p * (p / q).log_()).sum(1, keepdim=True).clamp_min_(0)
        scores[span] = step.abs() * divergence

    step = max(1, (SERIAL if move.device.type == "cpu" else ENTRIES) // width)
    in_threads(work, [slice(start, start + step) for start in range(0, len(move), step)])
    return scores


def threshold(scores: Tensor, spread: float) -> Tensor:
    """Median + spread·(third quartile − first) of importances [d]: a scalar, on their device."""
    size = len(scores)
    ranks = [size - math.floor(q * (size - 1)) for q in (0.25, 0.5, 0.75)]
    first, median, third = (found[0].double() for found in row_magnitudes(scores[None], ranks))
    return (median + spread * (third - first)).to(scores)
