"""The coordinate-wise median of task vectors, as a method for fusion-sweeps."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from torch import Tensor

from fusion.kinds import Static
from fusion.task_vectors.elementwise import combined
from fusion.task_vectors.task_vectors import TaskVectors


def median_merge(
    vectors: TaskVectors, *, scale: Annotated[float, Interval(ge=0)] = 1.0
) -> dict[str, Tensor]:
    """Median of task vectors, θ = θ₀ + λ·median_t(τ_t), entry by entry.

    One expert that moved far does not move the result.

    Args:
        vectors: base and task vectors.
        scale: λ. Default 1: the median itself.

    Source: the coordinate-wise median of Yin et al. 2018, arXiv:1803.01498, of task vectors.

    >>> import torch
    >>> experts = {"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}, "c": {"w": torch.ones(1)}}
    >>> experts["c"]["w"] *= 100
    >>> median_merge(TaskVectors.from_state_dicts({"w": torch.zeros(1)}, experts))["w"].item()
    1.0
    """
    return combined(vectors, median, scale=scale)


def median(rows: Tensor) -> Tensor:
    """Median [n] of rows [T, n]; of an even number, the mean of the middle two.

    >>> import torch
    >>> median(torch.tensor([[1.0], [5.0], [2.0], [-9.0]])).tolist()
    [1.5]
    """
    ordered = rows.sort(dim=0).values
    return (ordered[(len(rows) - 1) // 2] + ordered[len(rows) // 2]) / 2


METHODS = {
    "median_merge": Static(
        median_merge,
        paper="Yin et al. 2018, arXiv:1803.01498 (of gradients)",
        defaults="the median itself",
    )
}
