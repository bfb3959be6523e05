"""RegMean and RegMean++: linear layers that best reproduce the outputs of all experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.statistics.collect import Statistics, StatisticsRequest, sized
from fusion.task_vectors.coding import mix_tensor
from fusion.task_vectors.task_vectors import TaskVectors, accumulator

Fraction = Annotated[float, Interval(ge=0, le=1)]

Solve: TypeAlias = Callable[[Tensor], Tensor]
"""τ [T, out, in] of one layer -> its merged weight minus the base's [out, in]."""

Rest: TypeAlias = Callable[[str, Tensor], "Tensor | None"]
"""Name and τ [T, *shape] of a tensor that is no layer's matrix -> the merged tensor minus the
base's; None: the mean of τ."""


def regmean(
    vectors: TaskVectors,
    *,
    statistics: Mapping[str, Tensor],
    non_diagonal: Fraction = 0.95,
    ridge: Annotated[float, Interval(ge=0)] = 1e-6,
    examples: Annotated[int, Interval(ge=1)] = 256,
    seed: int = 0,
) -> dict[str, Tensor]:
    """RegMean: least-squares merge of linear layers, W = (Σ_t Ĝ_t)⁻¹ Σ_t Ĝ_t W_t; else the mean.

    For a linear layer y = xW, G_t = XᵀX/n is the Gram matrix of its inputs in expert t, on images
    of its own task. Ĝ has the diagonal of G, and α times its other entries. For α = 1, W minimises
    Σ_t ‖X_t W − X_t W_t‖². It is solved as W₀ + (Σ Ĝ)⁻¹ Σ Ĝ_t τ_t by a Cholesky factorisation;
    layers with the same inputs (q, k, v) share one factor. Other tensors are averaged.

    Args:
        vectors: base and task vectors.
        statistics: G, tensor name (a weight [out, in]) -> [T, in, in]; tensors without one are
            averaged.
        non_diagonal: α. Default 0.95, FusionBench's for CLIP; the paper's is 0.9 for most models.
        ridge: ρ; ρ times the mean of Ĝ_t's diagonal is added to the diagonal. Default 1e-6, which
            averages directions that no image activates. 0, as published, fails if an input is
            always 0.
        examples: images of each task's fit split, drawn with `seed`. Default 256, FusionBench's.
        seed: of the drawn images.

    Raises:
        InputError: statistics of another shape, or of unknown tensors; a singular sum of Gram
            matrices.

    Source: Jin et al. 2023, arXiv:2212.09849, §3, eq. 2 and the reduction of non-diagonal items.

    >>> experts = {"a": {"w": torch.tensor([[1.0]])}, "b": {"w": torch.tensor([[4.0]])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(1, 1)}, experts)
    >>> g = {"w": torch.tensor([[[2.0]], [[1.0]]])}
    >>> round(regmean(v, statistics=g)["w"].item(), 6)  # (2·1 + 1·4) / 3
    2.0
    """
    solver = regularised("regmean", non_diagonal, ridge)
    return least_squares("regmean", vectors, statistics, solver)


def regmean_plusplus(
    vectors: TaskVectors,
    *,
    statistics: Mapping[str, Tensor],
    non_diagonal: Fraction = 0.95,
    ridge: Annotated[float, Interval(ge=0)] = 1e-6,
    examples: Annotated[int, Interval(ge=1)] = 256,
    seed: int = 0,
) -> dict[str, Tensor]:
    """RegMean++: RegMean with Gram matrices of inputs that come from merged preceding layers.

    It goes layer by layer. The inputs of expert t's layer ℓ are computed from its task's images by
    the merged layers 0 … ℓ − 1. Their Gram matrices merge layer ℓ as in `regmean`, and the merged
    layer computes the inputs of the next one. So `statistics` depend on `non_diagonal` and `ridge`
    too.

    Args:
        vectors: base and task vectors.
        statistics: as for `regmean`, with merged preceding layers.
        non_diagonal: α. Default 0.95, FusionBench's.
        ridge: ρ, see `regmean`.
        examples: images of each task's fit split, drawn with `seed`. Default 256, FusionBench's.
        seed: of the drawn images.

    Raises:
        InputError: see `regmean`.

    Source: Nguyen et al. 2025, arXiv:2508.03121 (RegMean++). Deviation: FusionBench leaves the last
    norm (`post_layernorm`) at the base's; here it is averaged, as every other norm is.

    >>> experts = {"a": {"w": torch.tensor([[1.0]])}, "b": {"w": torch.tensor([[4.0]])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(1, 1)}, experts)
    >>> g = {"w": torch.tensor([[[2.0]], [[1.0]]])}
    >>> round(regmean_plusplus(v, statistics=g)["w"].item(), 6)
    2.0
    """
    solver = regularised("regmean_plusplus", non_diagonal, ridge)
    return least_squares("regmean_plusplus", vectors, statistics, solver)


def regmean_request(*, examples: int, seed: int, **rest: object) -> StatisticsRequest:
    """The statistics that `regmean` needs."""
    return StatisticsRequest("gram", examples, BATCH, seed)


def regmean_plusplus_request(
    *, non_diagonal: float, ridge: float, examples: int, seed: int, **rest: object
) -> StatisticsRequest:
    """The statistics that `regmean_plusplus` needs."""
    options = {"non_diagonal": non_diagonal, "ridge": ridge}
    return StatisticsRequest("prefix_gram", examples, BATCH, seed, options)


BATCH = 32
"""Images of a forward pass. Gram matrices are sums, so it changes only rounding."""


@dataclass(frozen=True)
class Normal:
    """Left side of the normal equations for one input: Ĝ_t = α·G_t + diag(extra_t)."""

    grams: Tensor
    """G [T, in, in]. Ĝ is not formed, which would cost one more pass over memory."""
    extra: Tensor
    """[T, in]: (1 − α)·diag G_t + ρ·mean(diag G_t)."""
    lower: Tensor
    """Cholesky factor L [in, in] with LLᵀ = Σ_t Ĝ_t."""
    non_diagonal: float
    """α."""

    def solve(self, deltas: Tensor) -> Tensor:
        """Transpose of (Σ_t Ĝ_t)⁻¹ Σ_t Ĝ_t τ_tᵀ for one layer: [out, in], in the dtype of L."""
        dtype = self.lower.dtype
        right = torch.zeros(deltas.shape[2], deltas.shape[1], dtype=dtype, device=deltas.device)
        for gram, extra, delta in zip(self.grams, self.extra, deltas, strict=True):
            # Memory of its own: products may depend on how an operand is aligned, and the tensors
            # of a shard are views into one array.
            tall = delta.T.to(dtype, copy=True, memory_format=torch.contiguous_format)
            right.addmm_(gram.to(dtype), tall, alpha=self.non_diagonal)
            right.addcmul_(extra[:, None].to(dtype), tall)
        return torch.cholesky_solve(right, self.lower).T


def regularised(
    method: str, non_diagonal: float, ridge: float
) -> Callable[[str, Tensor, torch.dtype], Solve]:
    """(name, Gram matrices, dtype) -> RegMean's solution, for `least_squares`."""
    return lambda name, grams, dtype: factor(method, name, grams, non_diagonal, ridge, dtype).solve


def least_squares(
    method: str,
    vectors: TaskVectors,
    statistics: Mapping[str, Tensor],
    solver: Callable[[str, Tensor, torch.dtype], Solve],
    rest: Rest = lambda name, deltas: None,
) -> dict[str, Tensor]:
    """Merge matrices that have a statistic by least squares, and other tensors by their mean.

    Args:
        method: name of the method, for messages.
        vectors: base and task vectors.
        statistics: tensor name -> Gram matrices [T, in, in], or another statistic.
        solver: (name, Gram matrices [T, in, in], dtype to compute in) -> the solution for layers
            with these inputs.
        rest: for the other tensors. Default: the mean of all.

    Raises:
        InputError: see `regmean`.
    """
    tasks = len(vectors.tasks)
    for name in statistics:
        if name not in vectors.groups:
            raise InputError(
                f"{method}: statistics: tensor {name!r}: not in this model: they are of other"
                " weights"
            )
    known: dict[tuple[str, torch.dtype], Solve] = {}

    def solution(name: str, deltas: Tensor, dtype: torch.dtype) -> Solve:
        key = statistics.key(name) if isinstance(statistics, Statistics) else name
        if (key, dtype) not in known:
            known.clear()  # q, k and v come one after the other: one is kept
            width = deltas.shape[2]
            grams = sized(method, statistics, name, (tasks, width, width), deltas.device)
            known[key, dtype] = solver(name, grams, dtype)
        return known[key, dtype]

    def fill(name: str, out: Tensor) -> None:
        base, deltas = vectors.base[name], vectors.deltas[name]
        dtype = accumulator(out.dtype, base.dtype, deltas.dtype)
        if name in statistics and deltas.ndim == 3:
            moved: Tensor | None = solution(name, deltas, dtype)(deltas)
        else:
            moved = rest(name, deltas)
        if moved is None:
            mix_tensor(out, base, deltas, [1.0] * tasks, scale=1 / tasks)
        else:
            out.copy_(base.to(dtype) + moved.to(dtype))

    return vectors.build(fill)


def factor(
    method: str,
    name: str,
    grams: Tensor,
    non_diagonal: float,
    ridge: float,
    dtype: torch.dtype = torch.float32,
) -> Normal:
    """Cholesky factor of Σ_t Ĝ_t in `dtype`, or in float64 if that fails.

    Raises:
        InputError: Gram matrices with NaN or Inf; a singular sum.
    """
    diagonal = grams.diagonal(dim1=1, dim2=2).to(accumulator(grams.dtype, dtype))
    extra = (1 - non_diagonal) * diagonal + ridge * diagonal.mean(1, keepdim=True)
    for wide in dict.fromkeys((accumulator(grams.dtype, dtype), torch.float64)):
        total = grams.sum(0, dtype=wide).mul_(non_diagonal)
        total.diagonal().add_(extra.sum(0, dtype=wide))
        if not bool(total.sum().isfinite()):
            raise InputError(f"{method}: statistics: tensor {name!r}: NaN or Inf")
        lower, bad = torch.linalg.cholesky_ex(total)
        if not int(bad) and bool(lower.diagonal().isfinite().all()):
            return Normal(grams, extra, lower, non_diagonal)
    raise InputError(
        f"{method}: tensor {name!r}: the sum of its Gram matrices is singular at row"
        f" {int(bad)} of {len(lower)}: too few examples, or inputs that never vary; a larger"
        f" ridge than {ridge:g}, more examples or a smaller non_diagonal than"
        f" {non_diagonal:g} needed"
    )
