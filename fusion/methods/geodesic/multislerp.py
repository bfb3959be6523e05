"""Multi-SLERP: mean direction and mean length of any number of models, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusion.methods.geodesic.directions import Of, merge_by_directions, model_weights, parallel
from fusion.task_vectors.gram import norms
from fusion.task_vectors.task_vectors import TaskVectors

EPSILON = 1e-8
"""mergekit's epsilon, added to lengths; a sum of directions that is shorter has no direction."""


def multislerp(
    vectors: TaskVectors,
    *,
    weights: Sequence[Any] | Mapping[str, Any] | None = None,
    of: Of = "weights",
) -> dict[str, Tensor]:
    """Multi-SLERP: θ_k = (Σ_t w_t‖θ_t,k‖)·m_k/‖m_k‖, m_k = Σ_t w_t·θ_t,k/(‖θ_t,k‖ + 1e-8).

    The source projects the directions u_t to the tangent space at m̂ = m/‖m‖, averages them there,
    r = Σ_t w_t(u_t − ⟨u_t, m̂⟩m̂), and goes along the sphere by r. As Σ_t w_t u_t is m itself, r is
    m − ‖m‖m̂ = 0, so the merged direction is m̂: one projected mean, where `karcher` iterates. It is
    computed here without the step. A soup's ingredients are models like any other.

    Args:
        vectors: base and task vectors.
        weights: w_t, one number of at least 0 for each model, as a list or by name; they are
            divided by their sum. Default: equal weights (mergekit has no default).
        of: `weights` (default; mergekit without a base model) averages the models' weights;
            `task_vectors` (with one) averages their task vectors and adds the mean to the base.

    Raises:
        InputError: wrong weights.

    If ‖m‖ < 1e-8 (opposite models, or task vectors that are zero), there is no direction, and the
    tensor is the weighted mean. mergekit does so for two models and fails for more. Memory beside
    base, task vectors and result: a block of T + 1 rows. Sums are made in float64.

    Source: mergekit 0.1.4 (`multislerp`); Goddard, "Multi-SLERP" (goddard.blog/posts/
    multislerp-wow-what-a-cool-idea). Weights are always normalised here.

    >>> experts = {"a": {"w": torch.tensor([2.0, 0.0])}, "b": {"w": torch.tensor([0.0, 4.0])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2)}, experts)
    >>> [round(x, 4) for x in multislerp(v, weights=[3, 1])["w"].tolist()]  # length 2.5
    [2.3717, 0.7906]
    """
    shares = model_weights("multislerp", vectors.tasks, weights)
    return merge_by_directions(vectors, of, lambda products: mean_direction(products, shares))


def mean_direction(products: Tensor, weights: Sequence[float]) -> list[float]:
    """T weights of the models in their Multi-SLERP.

    Args:
        products: Gram matrix [T, T] of the models, float64.
        weights: w_t; they sum to 1.

    >>> mean_direction(torch.eye(2).double(), [1.0, 0.0])
    [1.0, 0.0]
    """
    lengths, shares = norms(products), torch.tensor(weights, dtype=torch.float64)
    used = (lengths > 0) & (shares > 0)
    outer = torch.outer(lengths[used], lengths[used])
    if parallel(products[used][:, used] / outer):
        return list(weights)
    units = shares / (lengths + EPSILON)
    size = math.sqrt(max(0.0, float(units @ products @ units)))
    if size < EPSILON:
        return list(weights)
    return [float(weight) for weight in float(shares @ lengths) / size * units]
