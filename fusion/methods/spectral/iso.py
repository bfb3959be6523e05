"""Isotropic merging: the sum of task matrices with all its singular values made equal."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.methods.spectral.svd import (
    Directions,
    complement,
    leading,
    merge_matrices,
    polar,
    wide_copy,
)
from fusion.task_vectors.task_vectors import TaskVectors
from fusion.task_vectors.threads import each_alone


def iso_c(vectors: TaskVectors, *, scale: float = 1.0) -> dict[str, Tensor]:
    """θ = θ₀ + λ·σ̄·U Vᵀ for each matrix, with Σ_t τ_t = U·diag(σ)·Vᵀ and σ̄ = mean(σ).

    The mean is over all r = min(m, n) singular values. Those up to max(m, n)·ε of the largest
    count as zero, and their directions, which are arbitrary, stay zero. All other tensors are
    averaged, and take λ too.

    Args:
        vectors: base and task vectors.
        scale: λ. Default 1, FusionBench's; the paper chooses it on validation data.

    Float32 task vectors are summed in float64 and merged to float32's accuracy (`svd.py`),
    float64 ones in float64; memory beside base, task vectors and result: a few matrices.

    Source: Marczak et al. 2025, arXiv:2502.04959, §4 (Iso-C).

    >>> experts = {"a": {"w": torch.diag(torch.tensor([3.0, -1.0]))}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2, 2)}, experts)
    >>> [[round(x, 4) for x in row] for row in iso_c(v)["w"].tolist()]
    [[2.0, 0.0], [0.0, -2.0]]
    """

    def merged(deltas: Tensor) -> Tensor:
        factor, total = polar(summed(deltas), deltas.dtype)
        return factor * (total / min(factor.shape)).to(factor)

    return merge_matrices(vectors, merged, scale=scale)


def iso_cts(
    vectors: TaskVectors,
    *,
    scale: float = 1.0,
    common_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.8,
) -> dict[str, Tensor]:
    """θ = θ₀ + λ·σ̄·polar([U_1 … U_T U_c])·polar([V_1 … V_T V_c])ᵀ for each matrix [m, n].

    U_c, V_c: the leading c triplets of Σ_t τ_t. U_t, V_t: the leading s of τ_t − U_c U_cᵀ τ_t,
    what the common space leaves of task t. s = round((r − int(f·r))/T), half to even, at most
    r // T; c = r − s·T, r = min(m, n); σ̄ is the mean of all r singular values that are taken.
    Directions with zero singular values stay zero. All other tensors are averaged, and take λ.

    Args:
        vectors: base and task vectors.
        scale: λ. Default 1, FusionBench's; the paper chooses it on validation data.
        common_fraction: f, the share of common directions. Default 0.8, FusionBench's; with 1, or
            one task, it is `iso_c`.

    Float32 task vectors are summed in float64 and merged to float32's accuracy (`svd.py`),
    float64 ones in float64; memory beside base, task vectors and result: a few matrices.

    Source: Marczak et al. 2025, arXiv:2502.04959, §4 (Iso-CTS); rounding as the released
    code and FusionBench.

    >>> experts = {"a": {"w": torch.diag(torch.tensor([3.0, -1.0]))}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2, 2)}, experts)
    >>> [[round(x, 4) for x in row] for row in iso_cts(v, common_fraction=0.5)["w"].tolist()]
    [[2.0, 0.0], [0.0, -2.0]]
    """

    def merged(deltas: Tensor) -> Tensor:
        common, own = sizes(min(deltas.shape[1:]), len(deltas), common_fraction)
        return with_tasks(deltas, common, own)

    return merge_matrices(vectors, merged, scale=scale)


def sizes(rank: int, tasks: int, common_fraction: float) -> tuple[int, int]:
    """(common directions, directions of each task) of `rank`.

    >>> sizes(768, 8, 0.8), sizes(50, 8, 0.8), sizes(2, 3, 0.0)
    ((616, 19), (42, 1), (2, 0))
    """
    left = rank - int(common_fraction * rank)
    own = min(round(left / tasks), rank // tasks)
    return rank - own * tasks, own


def with_tasks(deltas: Tensor, common: int, own: int) -> Tensor:
    """Task matrices [T, m, n] -> [m, n]: `common` directions of the sum, `own` of each task."""
    known = deltas.dtype
    shared = leading(summed(deltas), common, known)
    parts = residues(deltas, shared.left, own) if own else []
    parts.append(shared)
    mean = torch.cat([part.values for part in parts]).mean()
    left, _ = polar(torch.cat([part.left for part in parts], 1), known)
    right, _ = polar(torch.cat([part.right for part in parts], 1), known)
    return left @ right.T * mean.to(known)


def residues(deltas: Tensor, common: Tensor, own: int) -> list[Directions]:
    """The `own` leading triplets of τ_t − U Uᵀ τ_t, U the orthonormal columns of `common` [m, c].

    Columns of zeros in `common` do not count. Where m <= n it is decomposed as Wᵀτ_t, W [m, m − c]
    the rest of an orthonormal basis: much smaller.
    """
    known = deltas.dtype
    rest = complement(common) if deltas.shape[1] <= deltas.shape[2] else None

    def residue(delta: Tensor) -> Directions:
        task = wide_copy(delta)
        # What the common space takes away wholly leaves rounding, which is no direction.
        noise = 10 * torch.finfo(known).eps * float(task.norm())
        if rest is None:
            task -= common @ (common.T @ task)
            return leading(task, own, known, least=noise)
        found = leading(rest.T @ task, own, known, least=noise)
        return found._replace(left=rest @ found.left)

    return each_alone(residue, list(deltas))


def summed(deltas: Tensor) -> Tensor:
    """Σ_t τ_t [m, n] in float64."""
    total = wide_copy(deltas[0])
    for delta in deltas[1:]:
        total += wide_copy(delta)  # converted first: several times as fast as a mixed sum
    return total
