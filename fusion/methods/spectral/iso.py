"""Isotropic merging: the sum of task matrices with all its singular values made equal."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.methods.spectral.batched import leading_directions, polar_factors, side_by_side
from fusion.methods.spectral.svd import (
    Directions,
    complement,
    leading,
    merge_matrices,
    polar,
    wide_copy,
)
from fusion.methods.static.scales import Scale, scaled_shares
from fusion.task_vectors.task_vectors import TaskVectors
from fusion.task_vectors.threads import map_single_threaded


def iso_c(vectors: TaskVectors, *, scale: Scale = 1.0) -> dict[str, Tensor]:
    """Iso-C: isotropic merging, θ = θ₀ + λ·σ̄·U Vᵀ for each matrix, with Σ_t τ_t = U·diag(σ)·Vᵀ.

    σ̄ is the mean over all r = min(m, n) singular values. Singular values up to max(m, n)·ε of the
    largest count as zero, and their directions, which are arbitrary, stay zero. All other tensors
    are averaged, and scaled by λ too.

    Args:
        vectors: base and task vectors.
        scale: λ. Default 1, FusionBench's; the paper chooses it on validation data. A number, a
            curve over depth, or a number λ_t for each task, which multiplies τ_t first. See
            `fusion.methods.static.scales`.

    Raises:
        InputError: a scale that fits neither tasks nor tensors.

    Float32 task vectors are summed in float64 and merged to float32's accuracy (`svd.py`), float64
    ones in float64. Memory beside base, task vectors and result: a few matrices.

    Source: Marczak et al. 2025, arXiv:2502.04959, §4 (Iso-C).

    >>> experts = {"a": {"w": torch.diag(torch.tensor([3.0, -1.0]))}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2, 2)}, experts)
    >>> [[round(x, 4) for x in row] for row in iso_c(v)["w"].tolist()]
    [[2.0, 0.0], [0.0, -2.0]]
    """

    def merged(deltas: Tensor) -> Tensor:
        factor, total = polar(summed(deltas), deltas.dtype)
        return factor * (total / min(factor.shape)).to(factor)

    def batched(stack: Tensor) -> Tensor:
        factors, totals = polar_factors(summed(stack.movedim(1, 0)), stack.dtype)
        return factors * (totals / min(factors.shape[1:])).to(factors)[:, None, None]

    return merge_matrices(vectors, merged, scale=scaled_shares(vectors, scale), batched=batched)


def iso_cts(
    vectors: TaskVectors,
    *,
    scale: Scale = 1.0,
    common_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.8,
) -> dict[str, Tensor]:
    """Iso-CTS: isotropic merging with common and task-specific singular directions.

    θ = θ₀ + λ·σ̄·polar([U_1 … U_T U_c])·polar([V_1 … V_T V_c])ᵀ for each matrix [m, n]. U_c and V_c
    are the leading c singular vectors of Σ_t τ_t. U_t and V_t are the leading s singular vectors of
    τ_t − U_c U_cᵀ τ_t, the part of task t outside of the common space. With r = min(m, n): s =
    round((r − int(f·r))/T), half to even, at most r // T, and c = r − s·T. σ̄ is the mean of all r
    singular values that are taken. Directions with zero singular values stay zero, and so do those
    of equal singular values of which a cut would take only some. All other tensors are averaged,
    and scaled by λ too.

    Args:
        vectors: base and task vectors.
        scale: λ. Default 1, FusionBench's; the paper chooses it on validation data. A number, a
            curve over depth, or a number λ_t for each task, which multiplies τ_t first. See
            `fusion.methods.static.scales`.
        common_fraction: f, the fraction of common directions. Default 0.8, FusionBench's; with 1,
            or one task, it is `iso_c`.

    Raises:
        InputError: a scale that fits neither tasks nor tensors.

    Float32 task vectors are summed in float64 and merged to float32's accuracy (`svd.py`), float64
    ones in float64. Memory beside base, task vectors and result: a few matrices.

    Source: Marczak et al. 2025, arXiv:2502.04959, §4 (Iso-CTS); rounding as in the released code
    and FusionBench.

    >>> experts = {"a": {"w": torch.diag(torch.tensor([3.0, -1.0]))}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2, 2)}, experts)
    >>> [[round(x, 4) for x in row] for row in iso_cts(v, common_fraction=0.5)["w"].tolist()]
    [[2.0, 0.0], [0.0, -2.0]]
    """

    def merged(deltas: Tensor) -> Tensor:
        common, own = sizes(min(deltas.shape[1:]), len(deltas), common_fraction)
        return with_tasks(deltas, common, own)

    def batched(stack: Tensor) -> Tensor:
        common, own = sizes(min(stack.shape[2:]), stack.shape[1], common_fraction)
        return with_tasks_together(stack, common, own)

    return merge_matrices(vectors, merged, scale=scaled_shares(vectors, scale), batched=batched)


def sizes(rank: int, tasks: int, common_fraction: float) -> tuple[int, int]:
    """(number of common directions, directions of each task) for a matrix of this rank.

    >>> sizes(768, 8, 0.8), sizes(50, 8, 0.8), sizes(2, 3, 0.0)
    ((616, 19), (42, 1), (2, 0))
    """
    left = rank - int(common_fraction * rank)
    own = min(round(left / tasks), rank // tasks)
    return rank - own * tasks, own


def with_tasks(deltas: Tensor, common: int, own: int) -> Tensor:
    """Iso-CTS of one matrix: task matrices [T, m, n] -> [m, n].

    Args:
        deltas: task matrices.
        common: number of leading directions of the sum.
        own: number of leading directions of each task.
    """
    known = deltas.dtype
    shared = leading(summed(deltas), common, known)
    parts = residues(deltas, shared.left, own) if own else []
    parts.append(shared)
    mean = torch.cat([part.values for part in parts]).mean()
    left, _ = polar(torch.cat([part.left for part in parts], 1), known)
    right, _ = polar(torch.cat([part.right for part in parts], 1), known)
    return left @ right.T * mean.to(known)


def with_tasks_together(stack: Tensor, common: int, own: int) -> Tensor:
    """`with_tasks` of K matrices on a GPU: [K, T, m, n] -> [K, m, n]."""
    known, (count, tasks) = stack.dtype, stack.shape[:2]
    parts = [leading_directions(summed(stack.movedim(1, 0)), common, known)]
    if own:
        wide = wide_copy(stack)
        noise = 10 * torch.finfo(known).eps * wide.flatten(2).norm(dim=2).flatten()
        shared = parts[0].left[:, None]
        wide -= shared @ (shared.mT @ wide)
        found = leading_directions(wide.flatten(0, 1), own, known, noise)
        left, right = (side_by_side(each, tasks) for each in (found.left, found.right))
        parts.insert(0, Directions(left, found.values.view(count, -1), right))
    mean = torch.cat([part.values for part in parts], 1).mean(1)
    left, _ = polar_factors(torch.cat([part.left for part in parts], 2), known)
    right, _ = polar_factors(torch.cat([part.right for part in parts], 2), known)
    return left @ right.mT * mean.to(known)[:, None, None]


def residues(deltas: Tensor, common: Tensor, own: int) -> list[Directions]:
    """Leading singular triplets of each task's residual τ_t − U Uᵀ τ_t.

    If m <= n, the smaller matrix Wᵀτ_t is decomposed instead, where W [m, m − c] completes U to an
    orthonormal basis.

    Args:
        deltas: task matrices [T, m, n].
        common: U [m, c], orthonormal columns; columns of zeros are ignored.
        own: number of triplets.
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

    return map_single_threaded(residue, list(deltas))


def summed(deltas: Tensor) -> Tensor:
    """Sum of the task matrices [T, …, m, n] in float64: […, m, n]."""
    total = wide_copy(deltas[0])
    for delta in deltas[1:]:
        total += wide_copy(delta)  # converted first: several times as fast as a mixed sum
    return total
