"""Singular directions and polar factors of task matrices, faster than by full decompositions.

All functions solve the symmetric eigenproblem of the shorter side's Gram matrix, in one of two
precisions:

* **float64**, in which squaring a float32 matrix loses nothing: singular values down to about 1e-7
  of the largest are resolved, and those below `tolerance` count as zero. It is used for small
  matrices, for matrices without full rank, and for matrices whose singular values decay fast.
* **float32**, on a CPU, in half the time. The eigenvectors are only a start there. What float32
  loses by squaring is corrected to first order (`polished`), or by a Rayleigh-Ritz step in float64
  in a larger subspace (`refined`). If that is not accurate enough, float64 is used.

Either way the results for a float32 matrix are nearer to those of a float64 decomposition than a
full float32 decomposition is (`benchmarks/fusion/spectral.py`). Float64 matrices are decomposed
directly. Tasks are decomposed side by side, each on one thread (`threads.map_single_threaded`). The
bits of what is made from all of them depend on the number of LAPACK threads, and otherwise only on
the matrices.

Directions of zero singular values are arbitrary and are left out here, and so are the directions of
equal singular values if a cut to the leading k would keep only some of them. So results do not
depend on what a decomposition returns for them, nor on signs, nor on rotations among equal singular
values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fusion.staging import sent
from fusion.task_vectors.coding import Shares, mix_tensor
from fusion.task_vectors.task_vectors import Deltas, TaskVectors

BLOCK = 192
"""Columns of a Gram matrix that are computed at a time; blocks above the diagonal are skipped."""

FEW = 0.4
"""Largest fraction of all directions for which float32 is tried first; above it, float64 is as
fast."""

SMALL = 128
"""Matrices whose shorter side is less use float64 directly, since they are cheap."""

APART = 1 / 80
"""Least gap, relative to the largest squared singular value, between the last one that is wanted
and the last one that is computed. The rounding of float32 then turns the wanted subspace by at most
about 1e-5."""

MILD = 1 / 16
"""Squared singular values above this fraction of the largest are accurate enough in float32."""

TAIL = 16
"""At least one in so many directions, the last ones, counts as weak."""

STRONG = 1 / 1024
"""Squared singular values above this fraction of the largest belong to strong directions."""

MOST = 0.4
"""Least fraction of strong directions for which the first-order correction is faster than
float64."""

FIRST_ORDER = 1 / 256
"""Largest norm of the first-order correction. The error that remains is its square, 1.5e-5 of a
norm of √n."""


EQUAL = 1e-9
"""Largest difference of singular values that count as equal, relative to the largest one; that of
float64 matrices is 1e-4 of it. The decompositions here are more accurate than that."""


class Directions(NamedTuple):
    """The leading k singular triplets of a matrix [m, n], largest first, in float64.

    If a singular value is zero, both of its directions are zero. So they are, and the value is zero
    too, if it equals the (k + 1)-th.
    """

    left: Tensor
    """Left singular vectors [m, k]."""
    values: Tensor
    """Singular values [k]."""
    right: Tensor
    """Right singular vectors [n, k]."""


GROUP = 1 << 25
"""Entries of the task vectors that are stacked at a time on a GPU: 128 MiB in float32."""


def merge_matrices(
    vectors: TaskVectors,
    merged: Callable[[Tensor], Tensor],
    *,
    scale: float | Callable[[str], Shares] = 1.0,
    batched: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Merge matrices by `merged` and average all other tensors, both scaled by λ.

    θ = θ₀ + λ·merged(c_t τ_t) for matrices, θ₀ + λ·mean_t(c_t τ_t) for other tensors.

    Args:
        vectors: base and task vectors.
        merged: task matrices [T, m, n] -> [m, n]; neither m nor n is zero.
        scale: λ (default 1; all c_t = 1), or tensor name -> c_t and λ.
        batched: the same for stacks on a GPU: [K, T, m, n] -> [K, m, n]. Default: one by one.

    On a CPU matrices are merged one by one: a batch of equal shapes would not be faster, and the
    bits must not depend on which tensors are in a shard together.
    """
    ones = Shares([1.0] * len(vectors.tasks))
    gpu = any(tensor.device.type != "cpu" for tensor in vectors.base.values())

    def shares(name: str) -> Shares:
        return scale(name) if callable(scale) else replace(ones, scale=scale)

    def weighted(name: str, delta: Deltas) -> Deltas:
        factors = shares(name).coefficients
        if delta.ndim != 3 or all(factor == 1 for factor in factors):
            return delta
        column = torch.tensor(factors, dtype=delta.dtype)
        return delta * sent(column, delta.device)[:, None, None]

    terms = vectors.altered(weighted) if callable(scale) else vectors

    def one(name: str) -> Tensor:
        return merged(terms.deltas[name])

    matrix = stacked(terms, batched) if batched and gpu else one

    def fill(name: str, out: Tensor) -> None:
        base, mine = vectors.base[name], shares(name)
        if is_matrix(base):
            mix_tensor(out, base, matrix(name)[None], [1.0], scale=mine.scale)
        else:
            each = mine.scale / len(mine.coefficients)
            mix_tensor(out, base, vectors.deltas[name], mine.coefficients, scale=each)

    return vectors.build(fill)


def is_matrix(base: Tensor) -> bool:
    """Whether a tensor is merged as a matrix."""
    return base.ndim == 2 and base.numel() > 0


def stacked(vectors: TaskVectors, batched: Callable[[Tensor], Tensor]) -> Callable[[str], Tensor]:
    """Function name -> merged matrix [m, n], for a GPU: matrices of one shape are merged together.

    A stack is merged when the first of its names is asked for; the others' results wait. Each name
    can be asked for once.
    """
    kinds: dict[tuple[torch.Size, torch.dtype], list[list[str]]] = {}
    group_of: dict[str, list[str]] = {}
    for name, base in vectors.base.items():
        if name not in vectors.deltas or not is_matrix(base):
            continue
        groups = kinds.setdefault((base.shape, base.dtype), [[]])
        most = max(1, GROUP // (len(vectors.tasks) * base.numel()))
        if len(groups[-1]) == most:
            groups.append([])
        groups[-1].append(name)
        group_of[name] = groups[-1]
    made: dict[str, Tensor] = {}

    def merged(name: str) -> Tensor:
        if name not in made:
            names = group_of[name]
            stack = torch.stack([vectors.deltas[each] for each in names])
            made.update(zip(names, batched(stack), strict=True))
        return made.pop(name)

    return merged


def wide_copy(matrix: Tensor) -> Tensor:
    """Contiguous float64 copy of a matrix.

    It has its own memory, because the bits of a matrix product may depend on the alignment of its
    operands, and the tensors of a shard are views into one array.
    """
    return matrix.detach().to(torch.float64, copy=True, memory_format=torch.contiguous_format)


def tolerance(matrix: Tensor, known: torch.dtype) -> float:
    """Relative tolerance for zero singular values: max(m, n)·ε, as in numpy's rank.

    Args:
        matrix: [m, n].
        known: dtype of the original entries, whose ε is used.
    """
    return float(max(matrix.shape) * torch.finfo(known).eps)


def least_kept(values: Tensor, count: int, known: torch.dtype, zero: Tensor) -> Tensor:
    """Singular values [..., 1] up to which directions are left out by a cut to the leading ones.

    Args:
        values: singular values [..., k + 1], largest first, or [..., k] if there are no more.
        count: k.
        known: dtype of the original entries.
        zero: largest singular value that counts as zero [..., 1].
    """
    if values.shape[-1] <= count:
        return zero
    same = EQUAL * (1e-4 if known == torch.float64 else 1.0)
    return torch.maximum(zero, values[..., count:] + same * values[..., :1])


def leading(matrix: Tensor, count: int, known: torch.dtype, *, least: float = 0.0) -> Directions:
    """The `count` leading singular triplets of a float64 matrix [m, n], count <= min(m, n).

    Triplets whose singular value equals the next one after them are zero, see `Directions`.

    Args:
        matrix: not written to.
        count: number of triplets.
        known: dtype of the original entries, see `tolerance`.
        least: singular values up to this one count as zero too. Default 0.

    >>> matrix = torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 0.0]]).double()
    >>> found = leading(matrix, 1, torch.float32)
    >>> found.values.tolist(), (found.left @ found.right.T).abs().tolist()
    ([2.0], [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    """
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = leading(matrix.T, count, known, least=least)
        return Directions(left, values, right)
    if known == torch.float64:
        left, every, right = torch.linalg.svd(matrix, full_matrices=False)
        left, right = left[:, :count], right[:count].T
    elif (found := refined(matrix, count)) is not None:
        left, every, right = found
    else:
        squares, right = top_eigen(lower_gram(matrix), count + 1)
        every, right = squares.clamp_min(0).sqrt(), right[:, :count]
        values = every[:count]
        left = matrix @ right / torch.where(values > 0, values, 1.0)
    zero = (every[:1] * tolerance(matrix, known)).clamp_min(least)
    values = every[:count]
    there = (values > least_kept(every[: count + 1], count, known, zero)).to(values)
    return Directions(left * there, values * there, right * there)


def refined(matrix: Tensor, count: int) -> Directions | None:
    """The `count` leading triplets of a float64 matrix [m, n], m >= n, from a float32 start, with
    one singular value more.

    The eigenvectors of a float32 Gram matrix are computed, a third more than requested. In the
    subspace they span, the triplets of the float64 matrix are found by Rayleigh-Ritz. Rounding in
    float32 mixes only directions with close singular values, and these are all inside the subspace
    if there is a gap (`APART`) after it. Returns None if there is no such gap, or if there are too
    many directions for this to be faster.
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
    values, turn = squares[: count + 1].sqrt(), turn[:, :count]
    return Directions(image @ turn / values[:count], values, space @ turn)


def polar(matrix: Tensor, known: torch.dtype) -> tuple[Tensor, Tensor]:
    """Polar factor of a float64 matrix [m, n] and the sum of its singular values (nuclear norm).

    The factor is Σ_i u_i v_iᵀ over the non-zero singular values: the nearest orthogonal matrix if
    the matrix has full rank, else the partial isometry with the same null space. It equals
    M·(MᵀM)^(−1/2), with 0 for the inverse root of 0.

    Args:
        matrix: M.
        known: dtype of the original entries; the factor has this dtype, the sum is float64.

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
    """`polar` of a float64 matrix M [m, n], m >= n, in float32; None if not accurate enough.

    V, the eigenvectors of a float32 Gram matrix, are those of MᵀM up to rounding, which grows from
    strong to weak directions (`STRONG`). The part K of the weak directions' images that lies in the
    images of the strong ones is split off, and the remaining images are made orthogonal in float64:
    M·V = C·(diag(σ) + K), where the columns of C are nearly orthonormal, CᵀC = I + N. To first
    order in N and K the factor is C·(I − F)·Vᵀ, F_ij = (N_ij·σ_i − K_ij + K_ji)/(σ_i + σ_j), so
    there is no division by a small σ_i alone. Returns None if N is larger than `FIRST_ORDER`, if
    most directions are weak, or if M does not have full rank. A matrix with only mild decay
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
    """Whether float32 is tried first: on a CPU, not for small matrices, not for zeros."""
    return matrix.device.type == "cpu" and min(matrix.shape) >= SMALL and bool(matrix.any())


def in_single(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(A float32 copy [m, n] scaled to largest entry 1, the scale); not for zeros."""
    largest = torch.stack(matrix.aminmax()).abs().max()
    return (matrix / largest).float(), largest


def lower_gram(matrix: Tensor) -> Tensor:
    """Gram matrix MᵀM [n, n] of [m, n], valid on and below the diagonal only."""
    size = matrix.shape[1]
    found = matrix.new_zeros(size, size)
    for start in range(0, size, BLOCK):
        columns = slice(start, start + BLOCK)
        found[start:, columns] = matrix[:, start:].T @ matrix[:, columns]
    return found


def mirrored(lower: Tensor) -> Tensor:
    """Symmetric matrix from a lower triangle."""
    return lower.tril() + lower.tril(-1).T.contiguous()  # a strided sum is much slower


def top_eigen(lower: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues [count], descending, and eigenvectors [n, count].

    Args:
        lower: symmetric matrix [n, n]; its lower triangle is read.
        count: number of eigenvalues.
    """
    # All of them are computed: LAPACK's choice of some takes two thirds of the time, but SciPy
    # holds Python's lock meanwhile, and torch has it not.
    every, basis = torch.linalg.eigh(lower)
    return every.flip(0)[:count], basis.flip(1)[:, :count]


def complement(left: Tensor) -> Tensor:
    """Orthonormal columns [m, m − k] orthogonal to k orthonormal columns in `left` [m, ≥ k].

    Columns of zeros in `left` are ignored.

    >>> complement(torch.tensor([[0.0, 0.0], [1.0, 0.0]]).double()).abs().tolist()
    [[1.0], [0.0]]
    """
    there = left[:, left.any(0)]
    basis: Tensor = torch.linalg.qr(there, mode="complete").Q
    return basis[:, there.shape[1] :]
