"""Task arithmetic: add the scaled sum of task vectors to the base."""

from __future__ import annotations

from torch import Tensor

from fusion.methods.static.scales import Scale, Weights, scaled_shares
from fusion.task_vectors.coding import linear
from fusion.task_vectors.task_vectors import TaskVectors

SCALE = 0.3
"""Default λ, the paper's for eight tasks."""


def task_arithmetic(
    vectors: TaskVectors, *, scale: Scale = SCALE, weights: Weights = None
) -> dict[str, Tensor]:
    """Task arithmetic: add the scaled sum of task vectors to the base, θ = θ₀ + λ·Σ_t w_t τ_t.

    The task vectors are summed in task order, scaled once, and added to the base last.

    Args:
        vectors: base and task vectors.
        scale: λ; negative values forget (negation). Default 0.3, the paper's for eight tasks. A
            number, a number for each task, or a curve over depth, see
            `fusion.methods.static.scales`.
        weights: w_t, in the forms of `weighted_average`, not normalised; None (default): 1.

    Raises:
        InputError: a scale or weights that fit neither tasks nor tensors.

    Source: Ilharco et al. 2023, arXiv:2212.04089, §2 and §4; order of operations as in FusionBench.

    >>> import torch
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}})
    >>> task_arithmetic(v, scale=0.5)["w"].tolist()
    [0.5, 0.5]
    >>> task_arithmetic(v, scale={"a": 2.0})["w"].tolist()
    [2.0, 2.0]
    """
    return linear(vectors, scaled_shares(vectors, scale, weights, summed=True))
