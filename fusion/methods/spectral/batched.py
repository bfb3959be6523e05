"""Singular directions and polar factors of many matrices of one shape, as batched products.

For GPUs, where a decomposition costs the time of hundreds of products, and each makes the host
wait. A stack [B, m, n] is worked on at once, in float64, whose products run at float32's rate on
GPUs for data centres:

* **Polar factors** by the Newton-Schulz iteration X ← α·X·(3 − α²·XᵀX)/2, with the α that brings
  the smallest singular value closest to 1. Source: Chen and Chow 2014, "A stable scaling of
  Newton-Schulz for improving the sign function computation of a Hermitian matrix".
* **Leading directions** by subspace iteration with the Gram matrix MᵀM, from fixed random numbers:
  a few plain steps, then steps by a Chebyshev polynomial of degree 2, then Rayleigh-Ritz. Source:
  Saad 2011, "Numerical Methods for Large Eigenvalue Problems", §5.3.

The number of steps is fixed. Afterwards each matrix is checked in float64; one that fails (without
full rank, or with singular values too close to each other) is decomposed by its Gram matrix. The
host waits once for the checks of a chunk. Results are those of `svd.py` up to rounding: 1e-5 of a
norm at most, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import sqrt

import torch
from torch import Tensor

from fusion.methods.spectral.svd import FEW, SMALL, TAIL, Directions, least_kept, tolerance
from fusion.staging import sent

ENTRIES = 1 << 22
"""Entries of a stack that are worked on at a time: 32 MiB in float64; a few such are in memory."""

ORTHOGONAL = 1e-9
"""Largest ‖XᵀX − 1‖ of a polar factor X that is accepted, relative to √n."""

APART = 1e-6
"""Largest ‖MᵀM·V − V·Λ‖ of directions V that are accepted, relative to the gap between the last
wanted eigenvalue and the last computed one: how far they turn at most."""

PLAIN = 3
"""Steps of a plain subspace iteration, which find the size of the unwanted eigenvalues."""

FILTERED = 16
"""Steps by the Chebyshev polynomial. If a wanted eigenvalue is 4/3 of the unwanted ones, each makes
their share 4.6 times smaller."""

RANGE = 1e-6
"""Least size of unwanted eigenvalues that the polynomial is made for, relative to the largest. With
smaller ones, the directions of a step would no longer be independent in float64."""


def polar_factors(stack: Tensor, known: torch.dtype) -> tuple[Tensor, Tensor]:
    """Polar factors of matrices [B, m, n], and their nuclear norms: see `svd.polar`.

    Args:
        stack: the matrices, converted to float64 chunk by chunk; not written to.
        known: dtype of the original entries.

    Returns:
        Factors [B, m, n] in `known`, and sums of singular values [B] in float64.
    """
    if stack.shape[1] < stack.shape[2]:
        factors, totals = polar_factors(stack.mT, known)
        return factors.mT, totals
    found = [polar_chunk(part, known) for part in chunks(stack)]
    return torch.cat([each[0] for each in found]), torch.cat([each[1] for each in found])


def polar_chunk(stack: Tensor, known: torch.dtype) -> tuple[Tensor, Tensor]:
    """`polar_factors` of matrices [B, m, n] with m >= n, all at once."""
    if known == torch.float64:
        left, values, right = torch.linalg.svd(stack, full_matrices=False)
        values = values * (values > values[:, :1] * tolerance(stack[0], known))
        return (left * (values > 0)[:, None]) @ right, values.sum(1)
    if stack.shape[2] < SMALL:
        return polar_by_gram(stack, known)
    factors, totals, right = newton_schulz(stack, tolerance(stack[0], known))
    found = factors.to(known), totals
    factors, totals = mended(found, right, lambda at: polar_by_gram(stack[at], known))
    return factors, totals


def newton_schulz(stack: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """Polar factors [B, m, n] and nuclear norms [B] of [B, m, n], and which are right, bool [B].

    Args:
        stack: m >= n.
        least: smallest singular value that the steps are made for, relative to the largest. A
            matrix with a smaller one is not right.
    """
    size = stack.shape[2]
    gram = stack.mT @ stack
    bound = gram.flatten(1).norm(dim=1).sqrt()[:, None, None]  # at most n^¼ times the largest
    bound = bound.clamp_min(1e-150)
    factors, squares, low = stack / bound, gram / bound.square(), least / size**0.25
    while 1 - low > 1e-15:
        scale = sqrt(3 / (1 + low + low * low))
        factors = torch.baddbmm(factors, factors, squares, beta=1.5 * scale, alpha=-0.5 * scale**3)
        squares = factors.mT @ factors
        low = min(0.5 * scale * low * (3 - scale * scale * low * low), 1.0)
    eye = torch.eye(size, dtype=stack.dtype, device=stack.device)
    wrong = (squares - eye).flatten(1).norm(dim=1)
    spread = factors.mT @ stack  # symmetric, and positive definite
    margin = (spread + spread.mT) / 2 - least * bound * eye
    definite = torch.linalg.cholesky_ex(margin).info == 0
    right = (wrong <= ORTHOGONAL * sqrt(size)) & definite
    return factors, spread.diagonal(dim1=1, dim2=2).sum(1), right


def polar_by_gram(stack: Tensor, known: torch.dtype) -> tuple[Tensor, Tensor]:
    """`polar_factors` of [B, m, n], m >= n, by the eigenvectors of the Gram matrices."""
    values, basis = singular(stack, stack.shape[2])
    there = values > values[:, :1] * tolerance(stack[0], known)
    inverse = torch.where(there, 1 / torch.where(there, values, 1.0), 0.0)
    scaled = ((stack @ basis) * inverse[:, None]).to(known)
    return scaled @ basis.mT.to(known), (values * there).sum(1)


def leading_directions(
    stack: Tensor, count: int, known: torch.dtype, least: Tensor | None = None
) -> Directions:
    """The `count` leading singular triplets of matrices [B, m, n]: see `svd.leading`.

    Args:
        stack: the matrices, converted to float64 chunk by chunk; not written to.
        count: number of triplets, at most min(m, n).
        known: dtype of the original entries.
        least: [B]; singular values up to this one count as zero too. Default: none do.

    Returns:
        Left [B, m, k], values [B, k], right [B, n, k].
    """
    if stack.shape[1] < stack.shape[2]:
        right, values, left = leading_directions(stack.mT, count, known, least)
        return Directions(left, values, right)
    found = [leading_chunk(part, count, known) for part in chunks(stack)]
    left, every, right = (torch.cat(parts) for parts in zip(*found, strict=True))
    zero = every[:, :1] * tolerance(stack[0], known)
    if least is not None:
        zero = torch.maximum(zero, least[:, None])
    values = every[:, :count]
    there = (values > least_kept(every, count, known, zero)).to(values)
    return Directions(left * there[:, None], values * there, right * there[:, None])


def leading_chunk(stack: Tensor, count: int, known: torch.dtype) -> Directions:
    """Leading triplets of matrices [B, m, n] with m >= n, all at once, with one singular value more
    if there is one. Nothing is left out."""
    if known == torch.float64:
        left, values, right = torch.linalg.svd(stack, full_matrices=False)
        return Directions(left[..., :count], values[:, : count + 1], right.mT[..., :count])
    size = stack.shape[2]
    wide = count + max(count // 3, TAIL)
    if size < SMALL or not 0 < count < wide <= FEW * size:
        return leading_by_gram(stack, count)
    found, right = subspace(stack, count, wide)
    return Directions(*mended(found, right, lambda at: leading_by_gram(stack[at], count)))


def leading_by_gram(stack: Tensor, count: int) -> Directions:
    """Leading triplets of [B, m, n], m >= n, by the eigenvectors of the Gram matrices; as
    `leading_chunk`."""
    every, basis = singular(stack, count + 1)
    values, basis = every[:, :count], basis[..., :count]
    left = stack @ basis / torch.where(values > 0, values, 1.0)[:, None]
    return Directions(left, every, basis)


def subspace(stack: Tensor, count: int, wide: int) -> tuple[Directions, Tensor]:
    """The `count` leading triplets of [B, m, n], m >= n, with one singular value more, and which
    are right, bool [B].

    Args:
        stack: the matrices.
        count: wanted directions.
        wide: computed directions, more than `count`.
    """
    gram = stack.mT @ stack
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(gram.shape[1], wide, generator=draw, dtype=stack.dtype)
    basis = sent(start, stack.device).expand(len(stack), -1, -1)
    for _ in range(PLAIN):
        basis, sizes = torch.linalg.qr(gram @ basis)
    sizes = sizes.diagonal(dim1=1, dim2=2).abs()  # about the eigenvalues
    unwanted = torch.maximum(sizes.amin(1), RANGE * sizes.amax(1))[:, None, None]
    unwanted = unwanted.clamp_min(torch.finfo(stack.dtype).tiny)
    for _ in range(FILTERED):  # 2·y² − 1 of y = 2·MᵀM/unwanted − 1, which keeps [0, unwanted] ≤ 1
        shifted = 2 * (gram @ basis) / unwanted - basis
        basis = torch.linalg.qr(4 * (gram @ shifted) / unwanted - 2 * shifted - basis).Q
    image = stack @ basis
    squares, turn = torch.linalg.eigh(image.mT @ image)
    squares, turn = squares.flip(1).clamp_min(0), turn.flip(2)[..., :count]
    every, space = squares[:, : count + 1].sqrt(), basis @ turn
    values = every[:, :count]
    left = image @ turn / torch.where(values > 0, values, 1.0)[:, None]
    off = gram @ space - space * squares[:, None, :count]
    gap = squares[:, count - 1] - squares[:, -1]
    right = off.flatten(1).norm(dim=1) <= APART * gap
    return Directions(left, every, space), right & (gap > 0)


def side_by_side(parts: Tensor, tasks: int) -> Tensor:
    """Columns of the tasks' matrices beside each other: [K·T, m, k] -> [K, m, T·k]."""
    return parts.view(-1, tasks, *parts.shape[1:]).movedim(1, 2).flatten(2)


def singular(stack: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest singular values [B, k], and right singular vectors [B, n, k]."""
    squares, basis = torch.linalg.eigh(stack.mT @ stack)
    return squares.flip(1)[:, :count].clamp_min(0).sqrt(), basis.flip(2)[..., :count]


def mended(
    found: tuple[Tensor, ...], right: Tensor, again: Callable[[list[int]], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Results [B, …] in which those that are not right are replaced by `again(their indices)`."""
    bad = [at for at, fine in enumerate(right.tolist()) if not fine]
    if not bad:
        return found
    if len(bad) == len(right):
        return again(bad)
    for whole, part in zip(found, again(bad), strict=True):
        for at, each in zip(bad, part, strict=True):
            whole[at] = each
    return found


def chunks(stack: Tensor) -> Iterator[Tensor]:
    """Parts of a stack of at most `ENTRIES` entries in float64, at least one matrix each."""
    step = max(1, ENTRIES // max(1, stack[0].numel()))
    for start in range(0, len(stack), step):
        yield stack[start : start + step].double()
