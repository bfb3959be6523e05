"""TALL masks (entries of the merged task vector that a task needs), and consensus merging."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.task_vectors.elementwise import combined
from fusion.task_vectors.equal_values import exact_sum
from fusion.task_vectors.task_vectors import TaskVectors

Compat: TypeAlias = Literal["paper", "released"]


def tall_mask(
    vectors: TaskVectors,
    *,
    task: str,
    threshold: Annotated[float, Interval(ge=0)] = 0.4,
    scale: float = 1.0,
    compat: Compat = "paper",
) -> dict[str, Tensor]:
    """TALL mask: θ_t = θ₀ + λ·(m_t ⊙ Στ), m_t = [|τ_t| ≥ κ·|Στ − τ_t|], one model for each task.

    Args:
        vectors: base and task vectors.
        task: the task whose model is returned.
        threshold: κ, the paper's λ_t; a larger one keeps fewer entries. Default 0.4, the middle of
            the paper's {0.2, …, 0.6}; FusionBench's is 0.6.
        scale: λ of the merged task vector. Default 1.
        compat: `released` keeps the entries with |τ_t| > κ·|Στ − τ_t|, as the authors' code, which
            drops entries of equal sides. In float32 such entries are rare, in bfloat16 they are
            0.1 to 0.4 % of all. Default `paper`, whose eq. 5 has ≥.

    If τ_t and Στ − τ_t are both zero, Στ is zero too, so the mask does not matter. The authors
    choose κ of each task on validation data; here all tasks have one. FusionBench's own version
    compares weights with task vectors and does not run.

    Source: Wang et al. 2024, arXiv:2405.07813, §4.1, eq. 5; code: github.com/nik-dim/tall_masks
    (src/utils/tallmask_utils.py).

    >>> experts = {"a": {"w": torch.tensor([2.0, 0.1])}, "b": {"w": torch.tensor([1.0, 3.0])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2)}, experts)
    >>> tall_mask(v, task="a")["w"].tolist()
    [3.0, 0.0]
    """
    at = vectors.tasks.index(task)

    def masked(rows: Tensor) -> Tensor:
        total = exact_sum(rows)
        return torch.where(masks(rows[at : at + 1], total, threshold, compat)[0], total, 0.0)

    return combined(vectors, masked, scale=scale)


def consensus(
    vectors: TaskVectors,
    *,
    threshold: Annotated[float, Interval(ge=0)] = 0.4,
    least: Annotated[int, Interval(ge=1)] = 2,
    scale: float = 0.3,
    compat: Compat = "paper",
) -> dict[str, Tensor]:
    """Consensus task arithmetic: θ = θ₀ + λ·(m ⊙ Στ), keeping entries that k tasks or more need.

    m = [Σ_t m_t ≥ k] with the TALL masks m_t. It removes entries that no task needs (catastrophic
    weights) and those that only one task needs (selfish weights).

    Args:
        vectors: base and task vectors.
        threshold: κ of the masks m_t (see `tall_mask`). Default 0.4.
        least: k. Default 2, the paper's; 0 would be task arithmetic; more than T keeps nothing.
        scale: λ. Default 0.3, as for task arithmetic; the paper chooses it on validation data.
        compat: `released` has > in place of ≥ in the masks (see `tall_mask`). Default `paper`.

    Source: Wang et al. 2024, arXiv:2405.07813, §4.3, eq. 6 (Consensus Task Arithmetic); code:
    github.com/nik-dim/tall_masks.

    >>> experts = {"a": {"w": torch.tensor([2.0, 0.1])}, "b": {"w": torch.tensor([1.0, 3.0])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2)}, experts)
    >>> consensus(v, scale=1.0)["w"].tolist()
    [3.0, 0.0]
    """

    def agreed(rows: Tensor) -> Tensor:
        total = exact_sum(rows)
        return torch.where(masks(rows, total, threshold, compat).sum(0) >= least, total, 0.0)

    return combined(vectors, agreed, scale=scale)


def masks(rows: Tensor, total: Tensor, threshold: float, compat: Compat) -> Tensor:
    """TALL masks, bool [T, n]: entries at least κ times the sum of the other tasks' entries.

    In the authors' code (`released`) an entry that equals it is not kept. Compared in float64, with
    a `total` of all tasks that does not depend on their order, so that the order decides nothing.
    """
    own, others = rows.abs(), threshold * (total - rows).abs()
    return own > others if compat == "released" else own >= others
