"""KnOTS and Core Space: another merge, in singular directions that the tasks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fusion.methods.spectral.svd import lower_gram, top_eigen, wide_copy
from fusion.task_vectors.coding import mix_tensor
from fusion.task_vectors.lazy import LazyTensors
from fusion.task_vectors.task_vectors import Deltas, TaskVectors, accumulator

Merge: TypeAlias = Callable[[TaskVectors], dict[str, Tensor]]
"""A merge of some tensors."""


def knots(
    vectors: TaskVectors, *, of: str | Mapping[str, Any] = "ties", merge: Merge
) -> dict[str, Tensor]:
    """KnOTS: merge the tasks' coordinates in the output directions that they share.

    θ = θ₀ + U·merge(Uᵀτ_1 … Uᵀτ_T) for each matrix [m, n], where U [m, R] are the left singular
    vectors of [τ_1 … τ_T] with singular values above zero, and `merge` is the method `of` on
    matrices [R, n] over a base of zeros. So that method compares entries that mean the same for all
    tasks. All other tensors are merged by `of` as they are. Made for LoRA experts, where R is at
    most the sum of their ranks; other experts can be merged too.

    Args:
        vectors: base and task vectors.
        of: the method that merges: its name, or a mapping of it to its parameters, which may hold
            search spaces. Any method that merges weights alone into one model; linear ones give
            what they give without KnOTS. Default: TIES, as KnOTS-TIES.
        merge: merges some tensors by the method `of`.

    Singular values up to max(m, n)·ε of the largest count as zero; the released code leaves out
    those up to 1e-5, whatever the scale of the weights. A survey of `of` (a density over the whole
    model, say) is made of coordinates. Directions are computed in float64; for float32 task
    vectors, from the Gram matrix of the shorter side of [τ_1 … τ_T]. Memory beside base, task
    vectors and result: a few matrices in float64, and the coordinates of one tensor.

    Source: Stoica et al. 2024, arXiv:2410.19735; outputs side by side as in the released code's
    default (`concat_across_output`).

    >>> from fusion.registry import METHODS
    >>> experts = {"a": {"w": torch.tensor([[1.0, 0.0], [1.0, 0.0]])},
    ...            "b": {"w": torch.tensor([[0.0, 2.0], [0.0, 2.0]])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2, 2)}, experts)
    >>> found = METHODS["knots"].merge(v, of={"ties": {"density": 0.5}})
    >>> [[round(x, 4) for x in row] for row in found["w"].tolist()]  # one shared direction
    [[1.0, 2.0], [1.0, 2.0]]
    """
    return merged_inside(vectors, merge, both_sides=False)


def core_space(
    vectors: TaskVectors, *, of: str | Mapping[str, Any] = "tsv_m", merge: Merge
) -> dict[str, Tensor]:
    """Core Space: merge small core matrices of the tasks, between input and output directions.

    θ = θ₀ + U·merge(Uᵀτ_1·V … Uᵀτ_T·V)·Vᵀ for each matrix [m, n], where U [m, R] are the left
    singular vectors of [τ_1 … τ_T] and V [n, S] the right ones of [τ_1; …; τ_T], with singular
    values above zero. `merge` is the method `of` on core matrices [R, S] over a base of zeros.
    Nothing is lost: U·Uᵀτ_t·V·Vᵀ = τ_t. All other tensors are merged by `of` as they are. Made for
    LoRA experts of rank r, whose core matrices are at most [T·r, T·r]; other experts can be merged
    too.

    Args:
        vectors: base and task vectors.
        of: the method that merges, see `knots`. Default: TSV-M, the best of the paper's without
            isotropic scaling.
        merge: merges some tensors by the method `of`.

    The paper takes U from the factors [B_1 … B_T] and V from [A_1; …; A_T] of τ_t = B_t·A_t. Here
    both are of the products, so the result depends neither on how a product is split into factors
    nor on whether there are any. The spaces are the same, and so are results of methods that do not
    depend on the basis (averages, `tsv_m`, `iso_c`, `iso_cts`, `optmerge`); those of methods that
    compare entries (`ties`) differ. Zero singular values, surveys and memory as with `knots`.

    Source: Panariello et al. 2025, arXiv:2509.17786.

    >>> from fusion.registry import METHODS
    >>> experts = {"a": {"w": torch.tensor([[3.0, 3.0], [3.0, 3.0]])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2, 2)}, experts)
    >>> found = METHODS["core_space"].merge(v, of={"task_arithmetic": {"scale": 0.5}})
    >>> [[round(x, 4) for x in row] for row in found["w"].tolist()]
    [[1.5, 1.5], [1.5, 1.5]]
    """
    return merged_inside(vectors, merge, both_sides=True)


def merged_inside(vectors: TaskVectors, merge: Merge, *, both_sides: bool) -> dict[str, Tensor]:
    """Merge coordinates of matrices and put the results back; merge other tensors as they are."""

    def fill(name: str, out: Tensor) -> None:
        base = vectors.base[name]
        if not has_space(base):
            merge(vectors.restrict([name]).into({name: out}))
            return
        deltas = vectors.deltas[name]
        left, right = space(deltas, both_sides)
        inside = coordinates(deltas, left, right)
        merged = merge(replace(vectors, **over_zeros({name: inside}), arena=None, results=None))
        back = left @ merged[name].double()
        back = back if right is None else back @ right.T
        mix_tensor(out, base, back.to(deltas.dtype)[None], [1.0])

    return vectors.build(fill)


def in_output_directions(vectors: TaskVectors) -> TaskVectors:
    """Task vectors whose matrices are coordinates, as `knots` merges them; computed when read."""
    return inside(vectors, both_sides=False)


def in_core_space(vectors: TaskVectors) -> TaskVectors:
    """Task vectors whose matrices are core matrices, as `core_space` merges them."""
    return inside(vectors, both_sides=True)


def inside(vectors: TaskVectors, *, both_sides: bool) -> TaskVectors:
    """Task vectors whose matrices are coordinates in shared directions, over a base of zeros."""
    deltas = vectors.deltas

    def make(name: str) -> Deltas:
        found = deltas[name]
        if not has_space(vectors.base[name]):
            return found
        return coordinates(found, *space(found, both_sides))

    def zeros(name: str, base: Tensor) -> Tensor:
        if not has_space(base):
            return base
        found = make(name)[0]
        return found.new_zeros(()).expand(found.shape)  # without memory

    base = {name: zeros(name, tensor) for name, tensor in vectors.base.items()}

    def outline(name: str) -> Tensor:
        shape = (len(vectors.tasks), *base[name].shape)
        return torch.empty(shape, dtype=accumulator(base[name].dtype), device="meta")

    found = LazyTensors(deltas, make, outline)
    return replace(vectors, base=base, deltas=found, arena=None)


def over_zeros(deltas: dict[str, Deltas]) -> dict[str, Any]:
    """The fields `base` and `deltas` of task vectors over a base of zeros."""
    return {"base": {name: torch.zeros_like(d[0]) for name, d in deltas.items()}, "deltas": deltas}


def has_space(base: Tensor) -> bool:
    """Whether a tensor is a matrix with entries."""
    return base.ndim == 2 and base.is_floating_point() and bool(base.numel())


def space(deltas: Deltas, both_sides: bool) -> tuple[Tensor, Tensor | None]:
    """(U [m, R], V [n, S] or None) of task matrices [T, m, n], in float64."""
    return directions(deltas), directions(deltas.mT) if both_sides else None


def directions(deltas: Deltas) -> Tensor:
    """Left singular vectors [m, R] of [τ_1 … τ_T] with singular values above zero, in float64."""
    tasks, rows, columns = deltas.shape
    side = wide_copy(deltas.transpose(0, 1).reshape(rows, tasks * columns))
    least = max(rows, columns) * torch.finfo(deltas.dtype).eps
    if deltas.dtype == torch.float64:
        left, values, _ = torch.linalg.svd(side, full_matrices=False)
        exact: Tensor = left[:, values > least * values[:1]].contiguous()
        return exact
    short = rows <= side.shape[1]
    squares, basis = top_eigen(lower_gram(side.T.contiguous() if short else side), min(side.shape))
    values = squares.clamp_min(0).sqrt()
    there = values > least * values[:1]
    found = basis[:, there]
    if not short:
        found = torch.linalg.qr(side @ found / values[there]).Q
    return found.contiguous()


def coordinates(deltas: Deltas, left: Tensor, right: Tensor | None) -> Deltas:
    """Uᵀτ_t or Uᵀτ_t·V of task matrices [T, m, n]: [T, R, n] or [T, R, S], in their dtype."""
    found = []
    for delta in deltas:
        task = left.T @ wide_copy(delta)
        found.append((task if right is None else task @ right).to(deltas.dtype))
    return torch.stack(found)
