"""Model Stock: interpolate between the base and the mean of the experts, by their angle."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fusion.task_vectors.coding import Shares, linear_by_measure
from fusion.task_vectors.gram import tensor_gram
from fusion.task_vectors.task_vectors import TaskVectors

EPSILON = 1e-8
"""FusionBench's epsilon, added to both denominators."""


def model_stock(
    vectors: TaskVectors, *, compat: Literal["paper", "fusionbench"] = "paper"
) -> dict[str, Tensor]:
    """Model Stock: θ_k = r_k·mean_t(θ_t,k) + (1 − r_k)·θ₀,k, for each tensor k.

    r = T·c/(1 + (T − 1)·c), where c is the mean cosine of the T(T−1)/2 pairs of task vectors of the
    tensor. A zero task vector has cosine 0 with all others. In the paper angles are acute. If c ≤
    0, r is 0 here, which gives the base; the paper's formula would leave the segment between base
    and mean, and has a pole at c = −1/(T−1). A single expert is its own mean, r = 1.

    Args:
        vectors: base and task vectors; in the paper, experts of one task.
        compat: `fusionbench` takes the cosine of the mean *angle*, adds 1e-8 to both denominators
            (which matters for norms below 1e-3: equal task vectors of norm 1e-4 have r = 0.646 and
            not 1), and allows any negative r. Default `paper`.

    Memory beside base, task vectors and result: a block of T rows. Products are summed in float64.

    Source: Jang et al. 2024, arXiv:2403.19522, eq. (7) and §4.
    `fusion.task_vectors.gram.model_stock_ratio` computes the same ratio without clamping it.

    >>> experts = {"a": {"w": torch.tensor([2.0, 0.0])},
    ...            "b": {"w": torch.tensor([1.0, 3.0**0.5])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2)}, experts)
    >>> [round(x, 4) for x in model_stock(v)["w"].tolist()]  # 60 degrees: r = 2/3
    [1.0, 0.5774]
    """
    ones = [1.0] * len(vectors.tasks)
    return linear_by_measure(
        vectors,
        lambda name, deltas: tensor_gram(deltas),
        lambda products: Shares(ones, scale=stock_ratio(products, compat) / len(ones)),
    )


def stock_ratio(products: Tensor, compat: Literal["paper", "fusionbench"] = "paper") -> float:
    """Interpolation ratio r of one tensor from the Gram matrix [T, T] of its task vectors.

    >>> stock_ratio(torch.tensor([[4.0, 2.0], [2.0, 4.0]]).double())
    0.6666666666666666
    """
    count = len(products)
    if count == 1:
        return 1.0
    lengths = products.diagonal().clamp_min(0).sqrt()
    lengthy = torch.outer(lengths, lengths)
    pairs = torch.triu_indices(count, count, 1).unbind()
    if compat == "fusionbench":
        cosine = (products / (lengthy + EPSILON)).clamp(-1, 1)[pairs]
        mean = float(cosine.arccos().mean().cos())
        return count * mean / ((count - 1) * mean + 1 + EPSILON)
    cosine = torch.where(lengthy > 0, products / lengthy, torch.zeros_like(products))
    mean = float(cosine.clamp(-1, 1)[pairs].mean())
    return count * mean / (1 + (count - 1) * mean) if mean > 0 else 0.0
