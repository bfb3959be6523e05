"""TSV-M: leading singular directions of each task's matrices, made orthogonal across tasks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fusion.methods.spectral.batched import leading_directions, polar_factors, side_by_side
from fusion.methods.spectral.svd import leading, merge_matrices, polar, wide_copy
from fusion.methods.static.scales import Scale, Weights, scaled_shares
from fusion.task_vectors.task_vectors import TaskVectors
from fusion.task_vectors.threads import map_single_threaded


def tsv_m(
    vectors: TaskVectors,
    *,
    scale: Scale = 1.0,
    weights: Weights = None,
    compat: Literal["paper", "fusionbench"] = "paper",
) -> dict[str, Tensor]:
    """TSV-M: merge the leading singular vectors of all tasks after making them orthogonal.

    θ = θ₀ + λ·polar([U_1 … U_T])·diag(S_1 … S_T)·polar([V_1 … V_T])ᵀ for each matrix [m, n]. U_t,
    S_t, V_t are the leading floor(r/T) singular triplets of τ_t, r = min(m, n). polar(X) =
    X(XᵀX)^(−1/2) is the nearest matrix with orthonormal columns. So tasks keep their strongest
    directions and no longer share any. All other tensors are averaged, and scaled by λ too.

    A singular value up to max(m, n)·ε of the largest counts as zero, and its direction is left out:
    a zero or low-rank task vector adds nothing. So are directions of equal singular values of which
    the cut would take only some. Likewise, directions that several tasks share exactly count as one
    direction. Deviation: FusionBench uses whatever its decomposition returns
    for zero singular values, which changes the polar factors.

    Args:
        vectors: base and task vectors.
        scale: λ. Default 1, FusionBench's. A number, a curve over depth, or a number λ_t for each
            task, which multiplies τ_t first. See `fusion.methods.static.scales`.
        weights: factors of the τ_t, applied first, in the forms of `weighted_average`; None
            (default): 1. (A list is FusionBench's `alpha` as a list.)
        compat: matters if r < T, so that floor(r/T) = 0: `paper` (default) averages such a matrix,
            `fusionbench` leaves the base's.

    Raises:
        InputError: a scale or weights that fit neither tasks nor tensors.

    Float32 task vectors are merged to float32's accuracy (`svd.py`), float64 ones in float64.
    Memory beside base, task vectors and result: that of a few matrices [m, n] in float64.

    Source: Gargiulo et al. 2025, arXiv:2412.00081 (TSV-Merge).

    >>> experts = {"a": {"w": torch.diag(torch.tensor([3.0, 1.0]))},
    ...            "b": {"w": torch.diag(torch.tensor([1.0, 2.0]))}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2, 2)}, experts)
    >>> [[round(x, 4) for x in row] for row in tsv_m(v)["w"].tolist()]
    [[3.0, 0.0], [0.0, 2.0]]
    """

    def merged(deltas: Tensor) -> Tensor:
        share = min(deltas.shape[1:]) // len(deltas)
        if not share:
            return torch.zeros_like(deltas[0]) if compat == "fusionbench" else deltas.mean(0)
        return orthogonalised(deltas, share)

    def batched(stack: Tensor) -> Tensor:
        share = min(stack.shape[2:]) // stack.shape[1]
        if not share:
            return torch.stack([merged(deltas) for deltas in stack])
        return orthogonalised_together(stack, share)

    shares = scaled_shares(vectors, scale, weights)
    return merge_matrices(vectors, merged, scale=shares, batched=batched)


def orthogonalised(deltas: Tensor, share: int) -> Tensor:
    """TSV-M of one matrix: [T, m, n] -> [m, n], with `share` directions of each task."""
    known = deltas.dtype
    parts = map_single_threaded(lambda delta: leading(wide_copy(delta), share, known), list(deltas))
    left, _ = polar(torch.cat([part.left for part in parts], 1), known)
    right, _ = polar(torch.cat([part.right for part in parts], 1), known)
    return left * torch.cat([part.values for part in parts]).to(known) @ right.T


def orthogonalised_together(stack: Tensor, share: int) -> Tensor:
    """`orthogonalised` of K matrices on a GPU: [K, T, m, n] -> [K, m, n]."""
    known, (count, tasks) = stack.dtype, stack.shape[:2]
    found = leading_directions(stack.flatten(0, 1), share, known)
    left, _ = polar_factors(side_by_side(found.left, tasks), known)
    right, _ = polar_factors(side_by_side(found.right, tasks), known)
    return left * found.values.view(count, 1, -1).to(known) @ right.mT
