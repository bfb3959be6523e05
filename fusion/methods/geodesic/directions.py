"""Models as directions and lengths, tensor by tensor: what means on a sphere are computed from.

Every point that these methods compute is a weighted sum of the models. So all angles and lengths
follow from the Gram matrix of the models, and only the last sum reads the weights again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from torch import Tensor

from fusion.errors import InputError
from fusion.methods.static.coefficients import entries, number
from fusion.task_vectors.coding import Shares, linear_by_measure
from fusion.task_vectors.gram import tensor_gram
from fusion.task_vectors.task_vectors import TaskVectors

Of: TypeAlias = Literal["weights", "task_vectors"]
"""What is averaged: the models' weights θ_t, or their task vectors τ_t."""

PARALLEL = 1e-14
"""Largest 1 − cosine at which directions count as equal: their angle is below 1.5e-7, and a mean on
the sphere is the weighted mean up to the rounding of float64."""


def merge_by_directions(
    vectors: TaskVectors, of: Of, mean: Callable[[Tensor], Sequence[float]]
) -> dict[str, Tensor]:
    """Merge every tensor into a weighted sum of the models, with weights from their Gram matrix.

    Args:
        vectors: base and task vectors.
        of: what the matrix and the sum are of.
        mean: Gram matrix [T, T] float64, on the CPU -> T weights.
    """

    def products(name: str, deltas: Tensor) -> Tensor:
        return tensor_gram(deltas, vectors.base[name] if of == "weights" else None)

    def shares(found: Tensor) -> Shares:
        if of == "task_vectors":
            return Shares(mean(found))
        cross = found[0, 1:]
        weights = mean(found[0, 0] + cross[:, None] + cross + found[1:, 1:])
        return Shares(weights, base_scale=total(weights))

    return linear_by_measure(vectors, products, shares)


def total(weights: Sequence[float]) -> float:
    """The sum of some weights; 1 if it differs from 1 by rounding only.

    So models that are equal merge to their weights, to the bit.

    >>> total([0.7, 0.2, 0.1]), total([0.5, 0.75])
    (1.0, 1.25)
    """
    found = math.fsum(weights)
    return 1.0 if abs(found - 1) < 1e-15 * len(weights) else found


def model_weights(
    owner: str, tasks: Sequence[str], weights: Sequence[Any] | Mapping[str, Any] | None
) -> list[float]:
    """One weight a model, at least 0, in the order of `tasks`; they sum to 1.

    Args:
        owner: name of the method, for messages.
        tasks: names of the models.
        weights: a number for each, as a list or by name. Default: equal weights.

    Raises:
        InputError: wrong length, an unknown or missing name, no finite number, a negative number,
            a sum of zero.
    """
    found = []
    for task, entry in entries(tasks, weights).items():
        weight = number(f"{owner}: weights: task {task!r}", entry)
        if weight < 0:
            raise InputError(f"{owner}: weights: task {task!r}: {weight:g}; >= 0 needed")
        found.append(weight)
    whole = math.fsum(found)
    if whole == 0:
        raise InputError(f"{owner}: weights: they sum to zero")
    return [weight / whole for weight in found]


def parallel(cosines: Tensor) -> bool:
    """Whether all directions are equal, from their cosines [T, T]."""
    return bool((1 - cosines <= PARALLEL).all())
