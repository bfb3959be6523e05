"""MagMax: take each entry from the task vector in which its magnitude is largest."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fusion.methods.static.scales import Scale, scaled_shares
from fusion.task_vectors.elementwise import combined
from fusion.task_vectors.task_vectors import TaskVectors


def magmax(
    vectors: TaskVectors,
    *,
    scale: Scale = 0.5,
    compat: Literal["paper", "fusionbench"] = "paper",
) -> dict[str, Tensor]:
    """MagMax: maximum magnitude selection, θ = θ₀ + λ·τ*, τ*_j = τ_kj with k = argmax_t |τ_tj|.

    If two entries of opposite sign have the same, largest magnitude, the positive one is taken, so
    that the order of the tasks does not matter.

    Args:
        vectors: base and task vectors.
        scale: λ. Default 0.5, FusionBench's. A number, a curve over depth, or a number λ_t for each
            task, which multiplies τ_t before the selection: the largest |λ_t·τ_tj| is taken. See
            `fusion.methods.static.scales`.
        compat: `fusionbench` takes the later task if magnitudes are equal, so the order of the
            tasks matters. Default `paper`.

    Raises:
        InputError: a scale that fits neither tasks nor tensors.

    Memory beside base, task vectors and result: a few chunks.

    Source: Marczak et al. 2024, arXiv:2407.06322. The paper fine-tunes its experts one after the
    other; the merge is the same for independent ones.

    >>> experts = {"a": {"w": torch.tensor([3.0, -1.0, 2.0])},
    ...            "b": {"w": torch.tensor([1.0, -4.0, -2.0])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(3)}, experts)
    >>> magmax(v, scale=1.0)["w"].tolist()
    [3.0, -4.0, 2.0]
    """
    rule = latest_largest if compat == "fusionbench" else largest
    return combined(vectors, rule, scale=scaled_shares(vectors, scale))


def largest(rows: Tensor) -> Tensor:
    """Entry [n] of largest magnitude among [T, n]; x among ±x. The order of rows does not matter.

    >>> largest(torch.tensor([[1.0, -2.0, 3.0], [-1.0, 1.0, 2.0]])).tolist()
    [1.0, -2.0, 3.0]
    """
    high, low = rows.amax(0), rows.amin(0)
    return torch.where(high >= -low, high, low)


def latest_largest(rows: Tensor) -> Tensor:
    """Entry [n] of largest magnitude among [T, n]; the later row's among equal magnitudes.

    >>> latest_largest(torch.tensor([[1.0, 3.0], [-1.0, 2.0]])).tolist()
    [-1.0, 3.0]
    """
    best = rows[0]
    for row in rows[1:]:
        best = torch.where(row.abs() >= best.abs(), row, best)
    return best
