"""EMR-Merging: one unified task vector, with a mask and a rescaling factor for each task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fusion.task_vectors.elementwise import combined, gathered, totals
from fusion.task_vectors.equal_values import elected_sign
from fusion.task_vectors.sharded_reduce import Survey, run_surveys
from fusion.task_vectors.task_vectors import TaskVectors

Compat: TypeAlias = Literal["paper", "released", "fusionbench"]


def emr(
    vectors: TaskVectors,
    *,
    task: str,
    compat: Compat = "paper",
    survey: tuple[float, ...] | None = None,
) -> dict[str, Tensor]:
    """EMR-Merging (elect, mask, rescale): θ_t = θ₀ + ρ_t·(M_t ⊙ τ_uni), one model for each task.

    Elect: s = sign(Σ_t τ_t); each entry of τ_uni is s times the largest |τ_t| among the tasks with
    sign s. Mask: M_t = [τ_t·s > 0]. Rescale: ρ_t = Σ|τ_t| / Σ|M_t ⊙ τ_uni| over all entries of the
    model, or 1 if the denominator is 0 (then the masked vector is 0).

    Args:
        vectors: base and task vectors.
        task: the task whose model is returned.
        compat: `released` is the authors' script for eight ViTs: a zero sum counts as negative, and
            both sums of ρ_t are sums over tensors of their mean, so that all tensors have equal
            weight whatever their size. FusionBench does the same; `fusionbench` is another name of
            it. (The authors' script for thirty ViTs takes means over the whole model, which gives
            the paper's ρ_t.) Default `paper`.
        survey: ρ of every task over the whole model, if `vectors` is one shard of it. Default:
            computed from `vectors`.

    The method would store base, τ_uni, T masks of one bit for each entry, and T numbers. Here all
    task vectors stay in memory, and a task's model is computed from them on request.

    Source: Huang et al. 2024, arXiv:2405.17461, §3.2 and Algorithm 1; code:
    github.com/harveyhuang18/EMR_Merging (merge_vit/src/main_emr_merging.py).

    >>> experts = {"a": {"w": torch.tensor([2.0, -1.0])}, "b": {"w": torch.tensor([1.0, 3.0])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2)}, experts)
    >>> emr(v, task="a")["w"].tolist()  # τ_uni = (2, 3), M_a = (1, 0), ρ_a = 3/2
    [3.0, 0.0]
    """
    if survey is None:
        survey = run_surveys([emr_survey(vectors, compat=compat)])
    at = vectors.tasks.index(task)

    def masked(rows: Tensor) -> Tensor:
        sign = elected(rows, compat)
        own = rows[at] * sign > 0
        return torch.where(own, unified(rows, sign), 0.0)

    return combined(vectors, masked, scale=survey[at])


def emr_survey(vectors: TaskVectors, *, compat: Compat = "paper") -> Survey[tuple[float, ...]]:
    """Rescaling factor ρ of every task, from sums over the whole model. Parameters as `emr`."""

    def sizes(rows: Tensor) -> Tensor:
        sign = elected(rows, compat)
        largest = unified(rows, sign)
        kept = torch.where(rows * sign > 0, largest.abs(), 0.0)
        return torch.stack(
            [rows.abs().sum(1, dtype=torch.float64), kept.sum(1, dtype=torch.float64)]
        )

    def line(name: str, deltas: Tensor) -> Tensor:
        weight = 1 if compat == "paper" else max(1, deltas[0].numel())
        return totals(deltas, sizes) / weight

    lines = yield gathered(vectors, line, 2, len(vectors.tasks))
    return tuple(ratios(lines.sum(0)))


def ratios(sums: Tensor) -> Iterator[float]:
    """Numerators divided by denominators of [2, T]; 1 if the denominator is 0."""
    for own, kept in sums.T.tolist():
        yield own / kept if kept else 1.0


def elected(rows: Tensor, compat: Compat) -> Tensor:
    """Elected sign of [T, n]: sign of the sum, −1, 0 or 1; a sum of 0 is −1 unless `paper`."""
    sign = elected_sign(rows)
    if compat != "paper":
        sign[sign == 0] = -1.0
    return sign


def unified(rows: Tensor, sign: Tensor) -> Tensor:
    """Unified task vector [n]: the largest entry of [T, n] with the elected sign, or 0."""
    return (rows * sign).clamp_min_(0).amax(0).mul_(sign)
