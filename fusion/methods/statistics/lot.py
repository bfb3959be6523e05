"""LOT merging: layers whose outputs drift least from those of the experts, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.statistics.collect import StatisticsRequest, sized
from fusion.methods.statistics.regmean import BATCH, Solve, least_squares
from fusion.task_vectors.task_vectors import TaskVectors, accumulator


def lot(
    vectors: TaskVectors,
    *,
    statistics: Mapping[str, Tensor],
    rtol: Annotated[float | None, Interval(ge=0, lt=1)] = None,
    examples: Annotated[int, Interval(ge=1)] = 64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """LOT merging: W = W₀ + (Σ_t G_t)† Σ_t G_t τ_t for linear layers; norms and biases likewise.

    It minimises Σ_t ‖X_t(W₀ + T) − X_t(W₀ + τ_t)‖² over T, layer by layer: the squared drift of a
    layer's outputs. X_t are the layer's inputs in expert t, on images of its own task, and G_t =
    X_tᵀX_t/n is their Gram matrix. † is the pseudo-inverse: in directions that no input has, the
    merged weight is the base's. A norm layer multiplies its normalised input x̂ by a weight, entry
    by entry. Its least squares are T = Σ_t E[x̂_t²]·τ_t / Σ_t E[x̂_t²], where 0/0 is 0. A bias has
    the input 1, so its T is the mean of τ_t. That is used for all other tensors too.

    Args:
        vectors: base and task vectors.
        statistics: name of a linear layer's weight [out, in] -> G [T, in, in]; of a norm's weight
            [d] -> E[x̂²] [T, d]; tensors without one are averaged.
        rtol: eigenvalues of Σ_t G_t up to rtol times the largest count as 0. Default (null): in · ε
            of float32, which is torch.linalg.pinv's for a float32 matrix.
        examples: images of each task's fit split, drawn with `seed`. Default 64, the most of the
            paper's experiments (16 to 64).
        seed: of the drawn images.

    Decompositions are made in float64. Layers with the same inputs (q, k, v) share one.

    Raises:
        InputError: statistics of another shape, of unknown tensors, or with NaN or Inf.

    Source: Sun et al. 2025, arXiv:2505.23859, eq. 9 and 12. Deviations: all tasks have equal weight
    (the paper sums over rows, of which a task of long texts has more). Inputs are those of the
    experts, as in RegMean, which this is with α = 1, a pseudo-inverse for the ridge, and norms.

    >>> experts = {"a": {"n": torch.tensor([1.0])}, "b": {"n": torch.tensor([4.0])}}
    >>> v = TaskVectors.from_state_dicts({"n": torch.zeros(1)}, experts)
    >>> lot(v, statistics={"n": torch.tensor([[2.0], [1.0]])})["n"].item()  # (2·1 + 1·4) / 3
    2.0
    """

    def solver(name: str, grams: Tensor, dtype: torch.dtype) -> Solve:
        return pseudo_inverse(name, grams, rtol)

    def norms(name: str, deltas: Tensor) -> Tensor | None:
        if name not in statistics or deltas.ndim != 2:
            return None
        weights = sized("lot", statistics, name, deltas.shape, deltas.device)
        return by_energy(name, weights, deltas)

    return least_squares("lot", vectors, statistics, solver, norms)


def lot_request(*, examples: int, seed: int, **rest: object) -> StatisticsRequest:
    """The statistics that `lot` needs."""
    return StatisticsRequest("norm_gram", examples, BATCH, seed)


def pseudo_inverse(name: str, grams: Tensor, rtol: float | None) -> Solve:
    """The solution T = (Σ_t G_t)† Σ_t G_t τ_tᵀ, transposed, for layers with Gram matrices G.

    Raises:
        InputError: Gram matrices with NaN or Inf.
    """
    total = grams.sum(0, dtype=torch.float64)
    if not bool(total.sum().isfinite()):
        raise InputError(f"lot: statistics: tensor {name!r}: NaN or Inf")
    values, directions = torch.linalg.eigh(total)
    least = rtol if rtol is not None else len(values) * torch.finfo(torch.float32).eps
    kept = values > least * values[-1:].clamp_min(0)
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)

    def solve(deltas: Tensor) -> Tensor:
        right = torch.zeros(
            deltas.shape[2], deltas.shape[1], dtype=total.dtype, device=total.device
        )
        for gram, delta in zip(grams, deltas, strict=True):
            # Memory of its own: products may depend on how an operand is aligned.
            tall = delta.T.to(total.dtype, copy=True, memory_format=torch.contiguous_format)
            right.addmm_(gram.to(total.dtype), tall)
        moved: Tensor = directions @ (inverse[:, None] * (directions.T @ right))
        return moved.T

    return solve


def by_energy(name: str, weights: Tensor, deltas: Tensor) -> Tensor:
    """Mean of τ [T, d] with weights [T, d], entry by entry; 0 where all weights are 0.

    Raises:
        InputError: weights with NaN or Inf.
    """
    weights = weights.to(accumulator(deltas.dtype, weights.dtype))
    total = weights.sum(0)
    if not bool(total.sum().isfinite()):
        raise InputError(f"lot: statistics: tensor {name!r}: NaN or Inf")
    return (weights * deltas).sum(0) / torch.where(total > 0, total, 1.0)
