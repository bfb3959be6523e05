"""Singular directions and polar factors of task matrices, faster than by full decompositions.

A float32 matrix [m, n] is squared into the Gram matrix of its shorter side in float64, where that
loses nothing that float32 knew: singular values down to about 1e-7 of the largest are resolved,
and those below `tolerance` count as zero. The symmetric eigenproblem of the shorter side is cheaper
than a decomposition where the matrix is not square, and much cheaper where only some directions are
needed (`benchmarks/spectral.py`). Float64 matrices are decomposed as they are.

Directions of zero singular values are arbitrary. They are left out here: results do not depend on
what a decomposition puts in their place, nor on signs, nor on rotations among equal values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.linalg import eigh
from torch import Tensor

from fusion.coding import mix_tensor
from fusion.state import TaskVectors

BLOCK = 192
"""Columns of a Gram matrix at a time: what lies above the diagonal's blocks is not computed."""

FEW = 0.4
"""Up to this share of all eigenvectors the others are not computed (an eighth: half the time)."""


class Directions(NamedTuple):
    """The leading k singular triplets of a matrix [m, n], largest first, in float64.

    Where the singular value is zero, so are both directions.
    """

    left: Tensor
    """[m, k]."""
    values: Tensor
    """[k]."""
    right: Tensor
    """[n, k]."""


def merge_matrices(
    vectors: TaskVectors, merged: Callable[[Tensor], Tensor], *, scale: float = 1.0
) -> dict[str, Tensor]:
    """θ = θ₀ + scale·merged(τ) of matrices; θ₀ + scale·mean_t(τ_t) of all other tensors.

    Args:
        vectors: base and task vectors.
        merged: task matrices [T, m, n] -> [m, n], neither m nor n zero.
        scale: λ, of both.

    Matrices are merged one by one: on a CPU a batch of equal shapes is decomposed matrix after
    matrix just the same, and the bits cannot depend on which tensors lie in a shard together.
    """
    ones = [1.0] * len(vectors.tasks)

    def fill(name: str, out: Tensor) -> None:
        base, deltas = vectors.base[name], vectors.deltas[name]
        if base.ndim == 2 and base.numel():
            mix_tensor(out, base, merged(deltas)[None], [1.0], scale=scale)
        else:
            mix_tensor(out, base, deltas, ones, scale=scale / len(ones))

    return vectors.build(fill)


def wide_copy(matrix: Tensor) -> Tensor:
    """A contiguous float64 copy: memory of its own, so that products have the same bits anywhere.

    Matrix products may depend on how their operands are aligned, and the tensors of a shard are
    views into one array.
    """
    return matrix.detach().to(torch.float64, copy=True, memory_format=torch.contiguous_format)


def tolerance(matrix: Tensor, known: torch.dtype) -> float:
    """Singular values up to this share of the largest are zero: max(m, n)·ε, as numpy's rank.

    Args:
        matrix: [m, n].
        known: the dtype its entries were known in, whose ε counts.
    """
    return float(max(matrix.shape) * torch.finfo(known).eps)


def leading(matrix: Tensor, count: int, known: torch.dtype, *, least: float = 0.0) -> Directions:
    """The `count` leading singular triplets of a float64 matrix [m, n], count <= min(m, n).

    Args:
        matrix: not written to.
        count: how many.
        known: the dtype its entries were known in (above).
        least: singular values up to this one count as zero too.

    >>> matrix = torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 0.0]]).double()
    >>> found = leading(matrix, 1, torch.float32)
    >>> found.values.tolist(), (found.left @ found.right.T).abs().tolist()
    ([2.0], [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    """
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = leading(matrix.T, count, known, least=least)
        return Directions(left, values, right)
    if known == torch.float64:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        first, left, right = values[:1], left[:, :count], right[:count].T
        values = values[:count]
    else:
        squares, right = top_eigen(lower_gram(matrix), count)
        values = squares.clamp_min(0).sqrt()
        first = values[:1]
        left = matrix @ right / torch.where(values > 0, values, 1.0)
    there = (values > (first * tolerance(matrix, known)).clamp_min(least)).to(values)
    return Directions(left * there, values * there, right * there)


def polar(matrix: Tensor, known: torch.dtype) -> tuple[Tensor, Tensor]:
    """(Σ_i u_i v_iᵀ over the non-zero singular values σ_i of a float64 matrix [m, n], Σ_i σ_i).

    The factor is the orthogonal matrix nearest to `matrix` where that has full rank, else the one
    partial isometry with its null space: M·(MᵀM)^(−1/2), with 0 for the inverse root of 0.

    >>> factor, total = polar(torch.tensor([[0.0, 2.0], [0.0, 0.0]]).double(), torch.float32)
    >>> factor.tolist(), total.item()
    ([[0.0, 1.0], [0.0, 0.0]], 2.0)
    """
    if matrix.shape[0] < matrix.shape[1]:
        factor, total = polar(matrix.T, known)
        return factor.T, total
    if known == torch.float64:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        there = values > values[:1] * tolerance(matrix, known)
        return left[:, there] @ right[there], values[there].sum()
    squares, vectors = top_eigen(lower_gram(matrix), matrix.shape[1])
    values = squares.clamp_min(0).sqrt()
    there = values > values[:1] * tolerance(matrix, known)
    kept = vectors[:, there]
    return matrix @ (kept / values[there] @ kept.T), values[there].sum()


def lower_gram(matrix: Tensor) -> Tensor:
    """MᵀM [n, n] of [m, n], right below the diagonal only; blocks above it are zero."""
    size = matrix.shape[1]
    found = matrix.new_zeros(size, size)
    for start in range(0, size, BLOCK):
        columns = slice(start, start + BLOCK)
        found[start:, columns] = matrix[:, start:].T @ matrix[:, columns]
    return found


def top_eigen(lower: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues [count], falling, and vectors [n, count] of a symmetric
    matrix [n, n], of which the lower triangle is read."""
    size = len(lower)
    if lower.device.type == "cpu" and 0 < count <= FEW * size:
        span = [size - count, size - 1]
        found = eigh(lower.numpy(), subset_by_index=span, check_finite=False)
        every, basis = map(torch.from_numpy, found)
    else:
        every, basis = torch.linalg.eigh(lower)
    return every.flip(0)[:count], basis.flip(1)[:, :count]
