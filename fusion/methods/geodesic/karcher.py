"""Karcher mean: the mean of models on a sphere, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.methods.geodesic.directions import Of, merge_by_directions, model_weights, parallel
from fusion.task_vectors.gram import norms
from fusion.task_vectors.task_vectors import TaskVectors


def karcher(
    vectors: TaskVectors,
    *,
    weights: Sequence[Any] | Mapping[str, Any] | None = None,
    of: Of = "weights",
    iterations: Annotated[int, Interval(ge=0)] = 10,
    tolerance: Annotated[float, Interval(gt=0)] = 1e-5,
) -> dict[str, Tensor]:
    """Karcher mean: θ_k = (Σ_t w_t‖θ_t,k‖)·u_k, u_k the mean of the directions θ_t,k/‖θ_t,k‖.

    The mean of points on the unit sphere is the point u with the least Σ_t w_t·angle(u, u_t)². It
    is found for each tensor k by gradient steps: from the normalised Σ_t w_t u_t, u moves along the
    great circle in the direction of g = Σ_t w_t log_u(u_t), by ‖g‖. The lengths of the models are
    averaged. For two models this is the point of `slerp` between them, with a mean length. A soup's
    ingredients are models like any other.

    Args:
        vectors: base and task vectors.
        weights: w_t, one number of at least 0 for each model, as a list or by name; they are
            divided by their sum. Default: equal weights.
        of: `weights` (default) averages the models' weights; `task_vectors` averages their task
            vectors, θ_k = θ₀,k + (Σ_t w_t‖τ_t,k‖)·u_k, as directions seen from the base.
        iterations: steps at most. Default 10, mergekit's.
        tolerance: the steps end when ‖g‖ is below it, and angles below it are not moved along, in
            radians. Default 1e-5, mergekit's.

    Raises:
        InputError: wrong weights.

    A model's tensor of length zero has no direction; it counts for the mean length only. If the
    weighted directions sum to (almost) zero, the mean is not unique, and the tensor is the weighted
    mean instead. Memory beside base, task vectors and result: a block of T + 1 rows.

    Source: Grove & Karcher 1973, How to conjugate C¹-close group actions (Math. Z. 132); of weights
    as in mergekit 0.1.4 (`karcher`), and arXiv:2603.04972. Differences from mergekit: sums are made
    in float64 from inner products, so that models are read twice whatever the number of steps;
    lengths below 1e-5, which it skips, have a direction here; where the directions sum to zero, it
    starts from the first model, so that the order of the models matters there.

    >>> experts = {"a": {"w": torch.tensor([2.0, 0.0])}, "b": {"w": torch.tensor([0.0, 4.0])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2)}, experts)
    >>> [round(x, 4) for x in karcher(v)["w"].tolist()]  # length 3, at 45 degrees
    [2.1213, 2.1213]
    """
    shares = model_weights("karcher", vectors.tasks, weights)
    return merge_by_directions(
        vectors, of, lambda products: karcher_weights(products, shares, iterations, tolerance)
    )


def karcher_weights(
    products: Tensor, weights: Sequence[float], iterations: int, tolerance: float
) -> list[float]:
    """T weights of the models in their Karcher mean.

    Args:
        products: Gram matrix [T, T] of the models, float64.
        weights: w_t; they sum to 1.
        iterations, tolerance: see `karcher`.
    """
    lengths, shares = norms(products), torch.tensor(weights, dtype=torch.float64)
    used = (lengths > 0) & (shares > 0)
    scale, part = lengths[used], shares[used]
    cosines = products[used][:, used] / torch.outer(scale, scale)
    cosines.fill_diagonal_(1.0)
    if parallel(cosines):
        return list(weights)
    point = start = part / part.sum()
    size = length_of(start, cosines)
    if size < tolerance:
        return list(weights)
    point = start / size
    for _ in range(iterations):
        step = direction(point, cosines, start, tolerance)
        size = length_of(step, cosines)
        if size < tolerance:
            break
        point = math.cos(size) * point + math.sin(size) / size * step
        point = point / length_of(point, cosines)
    found = torch.zeros_like(lengths)
    found[used] = float(shares @ lengths) * point / scale
    return [float(weight) for weight in found]


def direction(point: Tensor, cosines: Tensor, weights: Tensor, tolerance: float) -> Tensor:
    """g = Σ_t w_t log_u(u_t), the direction that leads to the mean.

    Args:
        point: u, as coefficients [T] of the directions u_t.
        cosines: their inner products [T, T].
        weights: w_t [T].
        tolerance: directions at a smaller angle to u, or to −u, are left out.

    Returns:
        Coefficients [T].
    """
    dots = (cosines @ point).clamp(-1, 1)
    angles = dots.arccos()
    moved = (angles >= tolerance) & (math.pi - angles >= tolerance)
    pull = torch.where(moved, weights * angles / angles.sin(), 0.0)
    return pull - float(pull @ dots) * point


def length_of(coefficients: Tensor, cosines: Tensor) -> float:
    """Length of a weighted sum of unit vectors, from its coefficients [T]."""
    return math.sqrt(max(0.0, float(coefficients @ cosines @ coefficients)))
