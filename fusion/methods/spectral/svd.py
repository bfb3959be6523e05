"""Singular directions and polar factors of task matrices, faster than by full decompositions.

All go through the symmetric eigenproblem of the shorter side's Gram matrix, in two precisions:

* **float64**, where squaring a float32 matrix loses nothing that float32 knew: singular values down
  to about 1e-7 of the largest are resolved, and those below `tolerance` count as zero. Small
  matrices go this way, and those of less than full rank or whose singular values fall far.
* **float32**, on a CPU, at half the time. The eigenvectors are only a start there: what float32
  lost by squaring is put right to first order (`polished`), or by a Rayleigh-Ritz step in float64
  among more directions than are asked for (`refined`). Where that does not do, float64 follows.

Either way a float32 matrix's results are nearer to those of a float64 decomposition than a full
float32 decomposition's are (`benchmarks/fusion/spectral.py`). Float64 matrices are decomposed as
they are.
Tasks are decomposed side by side, each on one thread (`threads.each_alone`); the bits of what is
made of them all depend on how many threads LAPACK has, and on nothing beside the matrices else.

Directions of zero singular values are arbitrary. They are left out here: results do not depend on
what a decomposition puts in their place, nor on signs, nor on rotations among equal values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fusion.task_vectors.coding import mix_tensor
from fusion.task_vectors.task_vectors import TaskVectors

BLOCK = 192
"""Columns of a Gram matrix at a time: what lies above the diagonal's blocks is not computed."""

FEW = 0.4
"""Up to this share of all directions float32 comes first; of more of them float64 is as fast."""

SMALL = 128
"""Matrices whose shorter side is less go to float64 at once: it costs next to nothing."""

APART = 1 / 80
"""Least distance of the last squared singular value that is wanted from the last that is computed,
of the largest: float32's rounding then turns the wanted space by no more than about 1e-5."""

MILD = 1 / 16
"""Above this share of the largest, squared singular values are known well enough in float32."""

TAIL = 16
"""At least the last one in so many directions counts as weak."""

STRONG = 1 / 1024
"""Above this share of the largest, squared singular values are those of strong directions."""

MOST = 0.4
"""Least share of strong directions for which their treatment is faster than float64."""

FIRST_ORDER = 1 / 256
"""Largest norm of what is corrected to first order; its square is left, 1.5e-5 of a norm of √n."""


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
    elif (found := refined(matrix, count)) is not None:
        left, values, right = found
        first = values[:1]
    else:
        squares, right = top_eigen(lower_gram(matrix), count)
        values = squares.clamp_min(0).sqrt()
        first = values[:1]
        left = matrix @ right / torch.where(values > 0, values, 1.0)
    there = (values > (first * tolerance(matrix, known)).clamp_min(least)).to(values)
    return Directions(left * there, values * there, right * there)


def refined(matrix: Tensor, count: int) -> Directions | None:
    """The `count` leading triplets of a float64 matrix [m, n], m >= n, found in float32 first.

    A third more eigenvectors than are asked for are taken of a float32 Gram matrix; within the
    space they span, the triplets are those of the float64 matrix (Rayleigh-Ritz). What float32
    mixes up is what lies close together: all of that is inside, the rest is at a distance `APART`.
    None where it is not, or where there are too many directions for this to be faster.
    """
    size = matrix.shape[1]
    wide = count + max(count // 3, TAIL)
    if not fast(matrix) or not 0 < count < wide <= FEW * size:
        return None
    squares, basis = top_eigen(lower_gram(in_single(matrix)[0]), wide)
    if not bool(squares[count - 1] - squares[-1] >= APART * squares[0]):
        return None
    space = torch.linalg.qr(basis.double()).Q
    image = matrix @ space
    squares, turn = top_eigen(image.T @ image, wide)
    values, turn = squares[:count].sqrt(), turn[:, :count]
    return Directions(image @ turn / values, values, space @ turn)


def polar(matrix: Tensor, known: torch.dtype) -> tuple[Tensor, Tensor]:
    """(Σ_i u_i v_iᵀ over the non-zero singular values σ_i of a float64 matrix [m, n], Σ_i σ_i).

    The factor is the orthogonal matrix nearest to `matrix` where that has full rank, else the one
    partial isometry with its null space: M·(MᵀM)^(−1/2), with 0 for the inverse root of 0. It is
    of dtype `known`, the sum is float64.

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
    if (found := polished(matrix)) is not None:
        return found
    squares, vectors = top_eigen(lower_gram(matrix), matrix.shape[1])
    values = squares.clamp_min(0).sqrt()
    there = values > values[:1] * tolerance(matrix, known)
    kept = vectors[:, there]
    # The division in float64: it magnifies what a product in float32 would lose.
    scaled = (matrix @ kept / values[there]).to(known)
    return scaled @ kept.T.to(known), values[there].sum()


def polished(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """`polar` of a float64 matrix M [m, n], m >= n, of full rank, its factor in float32; else None.

    V, the eigenvectors of a float32 Gram matrix, are those of MᵀM up to rounding, which grows from
    the strong directions to the weak ones (`STRONG`). Of the weak ones, what lies in the images of
    the strong is split off, K, and the others' images are made orthogonal in float64:
    M·V = C·(diag(σ) + K), with columns of C that are nearly orthonormal, CᵀC = I + N. To first
    order in N and K the factor is C·(I − F)·Vᵀ, F_ij = (N_ij·σ_i − K_ij + K_ji)/(σ_i + σ_j): no
    small number divides, however small a σ_i is. None where N stays above `FIRST_ORDER`, where
    most directions are weak, or where M has not full rank. A matrix without weak directions by far
    (`MILD`) is multiplied by (MᵀM)^(−1/2).
    """
    size = matrix.shape[1]
    if not fast(matrix):
        return None
    single, scale = in_single(matrix)
    squares, basis = top_eigen(lower_gram(single), size)
    if bool(squares[-1] > MILD * squares[0]):
        values = squares.sqrt()
        basis = 1.5 * basis - 0.5 * basis @ mirrored(lower_gram(basis))  # orthonormal again
        return single @ (basis / values @ basis.T), values.double().sum() * scale
    strong = min(int((squares > STRONG * squares[0]).sum()), size - size // TAIL)
    if strong < MOST * size:
        return None
    space = torch.linalg.qr(basis[:, strong:].double()).Q
    image = single.double() @ space
    left = single @ basis
    values = left.norm(dim=0)
    left[:, :strong] /= values[:strong]
    known = left[:, :strong].double()
    shared = known.T @ image
    image -= known @ shared
    _, turn = torch.linalg.eigh(image.T @ image)
    basis[:, strong:] = space @ turn
    weak = (image := image @ turn).norm(dim=0)
    if not bool(weak.min() > tolerance(matrix, torch.float32) * values.max()):
        return None
    values[strong:], left[:, strong:] = weak, image / weak
    wrong = lower_gram(left).tril_(-1)
    if not bool(2**0.5 * wrong.norm() < FIRST_ORDER):
        return None
    wrong, moved = mirrored(wrong) * values[:, None], (shared @ turn).float()
    wrong[:strong, strong:] -= moved
    wrong[strong:, :strong] += moved.T.contiguous()
    wrong /= values[:, None] + values
    return left @ (basis - basis @ wrong.T).T, values.double().sum() * scale


def fast(matrix: Tensor) -> bool:
    """Whether float32 is worth a try: on a CPU, not for small matrices, nor for zeros."""
    return matrix.device.type == "cpu" and min(matrix.shape) >= SMALL and bool(matrix.any())


def in_single(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(A float32 copy [m, n], its largest entry 1; what it was divided by), not of zeros."""
    largest = torch.stack(matrix.aminmax()).abs().max()
    return (matrix / largest).float(), largest


def lower_gram(matrix: Tensor) -> Tensor:
    """MᵀM [n, n] of [m, n], right below the diagonal only; blocks above it are zero."""
    size = matrix.shape[1]
    found = matrix.new_zeros(size, size)
    for start in range(0, size, BLOCK):
        columns = slice(start, start + BLOCK)
        found[start:, columns] = matrix[:, start:].T @ matrix[:, columns]
    return found


def mirrored(lower: Tensor) -> Tensor:
    """The symmetric matrix whose lower triangle is that of `lower`."""
    return lower.tril() + lower.tril(-1).T.contiguous()  # a strided sum is much slower


def top_eigen(lower: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues [count], falling, and vectors [n, count] of a symmetric
    matrix [n, n], of which the lower triangle is read."""
    # All of them are computed: LAPACK's choice of some takes two thirds of the time, but SciPy
    # holds Python's lock meanwhile, and torch has it not.
    every, basis = torch.linalg.eigh(lower)
    return every.flip(0)[:count], basis.flip(1)[:, :count]


def complement(left: Tensor) -> Tensor:
    """Orthonormal columns [m, m − k] at right angles to k orthonormal ones among `left` [m, ≥ k].

    Columns of zeros, directions that are not there, are passed over.

    >>> complement(torch.tensor([[0.0, 0.0], [1.0, 0.0]]).double()).abs().tolist()
    [[1.0], [0.0]]
    """
    there = left[:, left.any(0)]
    basis: Tensor = torch.linalg.qr(there, mode="complete").Q
    return basis[:, there.shape[1] :]
