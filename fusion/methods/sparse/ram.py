"""RAM: average the entries that several experts change, keep those that one expert changes."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.staging import sent
from fusion.task_vectors.elementwise import combine_tensor, combined, gathered, totals
from fusion.task_vectors.sharded_reduce import Survey, run_surveys
from fusion.task_vectors.task_vectors import TaskVectors


def ram(
    vectors: TaskVectors,
    *,
    plus: bool = False,
    r: Annotated[float, Interval(ge=0)] = 0.1,
    alpha: Annotated[float, Interval(ge=0)] = 0.2,
    granularity: Literal["model", "tensor"] = "model",
    epsilon: Annotated[float, Interval(ge=0)] = 1e-5,
    survey: tuple[float, ...] | None = None,
) -> dict[str, Tensor]:
    """Reinforced Agent Merging: θ_j = θ₀,j + (1/|A_j|)·Σ_{t∈A_j} λ_tj τ_tj, A_j = {t: |τ_tj| > ε}.

    A_j are the experts that change entry j. An entry that several experts change is averaged over
    them, λ_tj = 1. An entry that one expert changes is its own, with λ_tj = 1 (RAM) or λ_t (RAM+),
    λ_t = 1 + r·min(ρ_t, α), where ρ_t is the number of entries that expert t shares, divided by the
    number that it alone changes. The paper made it for task vectors of reinforcement learning,
    most of whose entries are zero.

    Args:
        vectors: base and task vectors.
        plus: RAM+, which rescales entries of one expert. Default false: RAM.
        r: of RAM+. Default 0.1, mergekit's.
        alpha: α of RAM+, the largest ρ_t that counts. Default 0.2, mergekit's.
        granularity: of RAM+. `model` (default, the paper's) counts entries of the whole model;
            `tensor` (mergekit's `ramplus_tl`) those of each tensor.
        epsilon: ε, the largest change that counts as none. Default 1e-5, the paper's and
            mergekit's.
        survey: λ of every expert over the whole model, if `vectors` is one shard of it. Default:
            computed from `vectors`.

    Memory beside base, task vectors and result: a few chunks.

    Source: Yuan et al. 2026, arXiv:2601.13572; of tensors as in mergekit 0.1.4 (`ram`,
    `ramplus_tl`).

    >>> experts = {"a": {"w": torch.tensor([2.0, 3.0, 0.0])},
    ...            "b": {"w": torch.tensor([4.0, 0.0, 0.0])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(3)}, experts)
    >>> ram(v)["w"].tolist(), [round(x, 2) for x in ram(v, plus=True)["w"].tolist()]
    ([3.0, 3.0, 0.0], [3.0, 3.06, 0.0])
    """
    if not plus:
        return combined(vectors, lambda rows: joined(rows, epsilon))
    if granularity == "tensor":
        return by_tensor(vectors, r, alpha, epsilon)
    if survey is None:
        survey = run_surveys([ram_survey(vectors, plus=True, r=r, alpha=alpha, epsilon=epsilon)])
    whole = survey
    scales = torch.tensor(whole, dtype=torch.float64)

    def combine(rows: Tensor) -> Tensor:
        return joined(rows, epsilon, sent(scales.to(rows.dtype), rows.device))

    return combined(vectors, combine)


def ram_survey(
    vectors: TaskVectors,
    *,
    plus: bool = False,
    r: float = 0.1,
    alpha: float = 0.2,
    granularity: Literal["model", "tensor"] = "model",
    epsilon: float = 1e-5,
) -> Survey[tuple[float, ...] | None]:
    """λ of every expert, from counts of a whole model; None if they are not needed."""
    if not plus or granularity == "tensor":
        return None
    lines = yield gathered(
        vectors,
        lambda name, deltas: totals(deltas, lambda rows: counts(rows, epsilon)),
        2,
        len(vectors.tasks),
    )
    return tuple(factors(lines.sum(0), r, alpha).tolist())


def by_tensor(vectors: TaskVectors, r: float, alpha: float, epsilon: float) -> dict[str, Tensor]:
    """RAM+ with counts of each tensor."""

    def fill(name: str, out: Tensor) -> None:
        deltas = vectors.deltas[name]
        found = factors(totals(deltas, lambda rows: counts(rows, epsilon)), r, alpha)
        combine_tensor(
            out, vectors.base[name], deltas, lambda rows: joined(rows, epsilon, found.to(rows))
        )

    return vectors.build(fill)


def counts(rows: Tensor, epsilon: float) -> Tensor:
    """Numbers of entries that each expert shares, and that it alone changes: float64 [2, T].

    `rows`: τ [T, n].
    """
    changed = rows.abs() > epsilon
    several = changed.sum(0) > 1
    return torch.stack([(changed & several).sum(1), (changed & ~several).sum(1)]).double()


def factors(found: Tensor, r: float, alpha: float) -> Tensor:
    """λ [T] = 1 + r·min(ρ, α) from counts [2, T]; an expert without entries of its own has ρ = its
    number of shared ones, which multiplies nothing."""
    shared, own = found
    ratio: Tensor = (shared / own.clamp_min(1)).clamp_max(alpha)
    return ratio.mul(r).add(1)


def joined(rows: Tensor, epsilon: float, scales: Tensor | None = None) -> Tensor:
    """Merged task vector [n] of τ [T, n].

    Args:
        rows: τ, overwritten.
        epsilon: the largest change that counts as none.
        scales: λ [T] of entries that one expert changes. None: 1.
    """
    changed = rows.abs() > epsilon
    number = changed.sum(0)
    rows.mul_(changed)
    own = rows.sum(0) if scales is None else (rows * scales[:, None]).sum(0)
    return torch.where(number > 1, rows.sum(0) / number, own)
