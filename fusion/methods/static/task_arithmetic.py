"""Task arithmetic: add the scaled sum of task vectors to the base."""

from __future__ import annotations

from torch import Tensor

from fusion.task_vectors.coding import Shares, linear
from fusion.task_vectors.task_vectors import TaskVectors

SCALE = 0.3
"""Default λ, the paper's for eight tasks."""


def task_arithmetic(vectors: TaskVectors, *, scale: float = SCALE) -> dict[str, Tensor]:
    """Task arithmetic: add the scaled sum of task vectors to the base, θ = θ₀ + λ·Σ_t τ_t.

    The task vectors are summed in task order, scaled once, and added to the base last.

    Args:
        vectors: base and task vectors.
        scale: λ; negative values forget (negation). Default 0.3, the paper's for eight tasks.

    Source: Ilharco et al. 2023, arXiv:2212.04089, §2 and §4; order of operations as in FusionBench.

    >>> import torch
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}})
    >>> task_arithmetic(v, scale=0.5)["w"].tolist()
    [0.5, 0.5]
    """
    ones = [1.0] * len(vectors.tasks)
    return linear(vectors, lambda name: Shares(ones, scale=scale))
