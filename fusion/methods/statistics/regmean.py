"""RegMean and RegMean++: linear layers that best reproduce all experts' outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.statistics.collect import Asked, Statistics, sized
from fusion.task_vectors.coding import mix_tensor
from fusion.task_vectors.task_vectors import TaskVectors, accumulator

Fraction = Annotated[float, Interval(ge=0, le=1)]


def regmean(
    vectors: TaskVectors,
    *,
    statistics: Mapping[str, Tensor],
    non_diagonal: Fraction = 0.95,
    ridge: Annotated[float, Interval(ge=0)] = 1e-6,
    examples: Annotated[int, Interval(ge=1)] = 256,
    seed: int = 0,
) -> dict[str, Tensor]:
    """W = (Σ_t Ĝ_t)⁻¹ Σ_t Ĝ_t W_t for linear layers y = xW, the mean for all other tensors.

    G_t = XᵀX/n of the layer's inputs in expert t, on images of its own task; Ĝ has G's diagonal
    and α times the rest. W minimises Σ_t ‖X_t W − X_t W_t‖² where α = 1. It is solved as
    W₀ + (Σ Ĝ)⁻¹ Σ Ĝ_t τ_t by Cholesky's factorisation; layers with the same inputs (q, k, v) share
    one factor.

    Args:
        vectors: base and task vectors.
        statistics: G, tensor name (a weight [out, in]) -> [T, in, in]; tensors without one are
            averaged.
        non_diagonal: α. Default 0.95, FusionBench's for CLIP; the paper's is 0.9 for most models.
        ridge: ρ: ρ times the mean of Ĝ_t's diagonal is added to it. Default 1e-6: what no image
            moves is then averaged. 0, as published, cannot be solved where an input is always 0.
        examples: images of each task's fit rows, drawn with `seed`. Default 256, FusionBench's.
        seed: of images.

    Raises:
        InputError: statistics of another shape, or of tensors that are not there; a sum of Gram
            matrices that is singular.

    Source: Jin et al. 2023, arXiv:2212.09849, §3, eq. 2 and the reduction of non-diagonal items.

    >>> experts = {"a": {"w": torch.tensor([[1.0]])}, "b": {"w": torch.tensor([[4.0]])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(1, 1)}, experts)
    >>> g = {"w": torch.tensor([[[2.0]], [[1.0]]])}
    >>> round(regmean(v, statistics=g)["w"].item(), 6)  # (2·1 + 1·4) / 3
    2.0
    """
    return least_squares("regmean", vectors, statistics, non_diagonal, ridge)


def regmean_plusplus(
    vectors: TaskVectors,
    *,
    statistics: Mapping[str, Tensor],
    non_diagonal: Fraction = 0.95,
    ridge: Annotated[float, Interval(ge=0)] = 1e-6,
    examples: Annotated[int, Interval(ge=1)] = 256,
    seed: int = 0,
) -> dict[str, Tensor]:
    """RegMean whose Gram matrices are of inputs that come from the merged layers before.

    Layer after layer: expert t's own layer ℓ reads what the merged layers 0 … ℓ − 1 make of its
    task's images; their Gram matrices merge layer ℓ as `regmean` does; then the merged layer makes
    the next layer's inputs. So `statistics` depend on `non_diagonal` and `ridge` as well.

    Args:
        vectors: base and task vectors.
        statistics: as of `regmean`, of merged prefixes.
        non_diagonal: α. Default 0.95, FusionBench's.
        ridge: ρ, see `regmean`.
        examples: images of each task's fit rows, drawn with `seed`. Default 256, FusionBench's.
        seed: of images.

    Raises:
        InputError: see `regmean`.

    FusionBench leaves the last norm (`post_layernorm`) at the base's; it is averaged here, as every
    other norm is.

    Source: Nguyen et al. 2025, arXiv:2508.03121 (RegMean++).

    >>> experts = {"a": {"w": torch.tensor([[1.0]])}, "b": {"w": torch.tensor([[4.0]])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(1, 1)}, experts)
    >>> g = {"w": torch.tensor([[[2.0]], [[1.0]]])}
    >>> round(regmean_plusplus(v, statistics=g)["w"].item(), 6)
    2.0
    """
    return least_squares("regmean_plusplus", vectors, statistics, non_diagonal, ridge)


def regmean_asks(*, examples: int, seed: int, **rest: object) -> Asked:
    """What `regmean` needs to know of the data."""
    return Asked("gram", examples, BATCH, seed)


def regmean_plusplus_asks(
    *, non_diagonal: float, ridge: float, examples: int, seed: int, **rest: object
) -> Asked:
    """What `regmean_plusplus` needs to know of the data."""
    options = {"non_diagonal": non_diagonal, "ridge": ridge}
    return Asked("prefix_gram", examples, BATCH, seed, options)


BATCH = 32
"""Images a forward pass: Gram matrices are sums, so it changes rounding only."""


@dataclass(frozen=True)
class Normal:
    """The left side of the normal equations of one input: Ĝ_t = α·G_t + diag(extra_t)."""

    grams: Tensor
    """G [T, in, in], as they are kept: Ĝ is never formed, as it would be read once more."""
    extra: Tensor
    """[T, in]: (1 − α)·diag G_t + ρ·mean(diag G_t)."""
    lower: Tensor
    """L [in, in] with LLᵀ = Σ_t Ĝ_t."""
    non_diagonal: float

    def solve(self, deltas: Tensor) -> Tensor:
        """(Σ_t Ĝ_t)⁻¹ Σ_t Ĝ_t τ_tᵀ, transposed: [out, in], in the dtype of L."""
        dtype = self.lower.dtype
        right = torch.zeros(deltas.shape[2], deltas.shape[1], dtype=dtype, device=deltas.device)
        for gram, extra, delta in zip(self.grams, self.extra, deltas, strict=True):
            # Memory of its own: products may depend on how an operand is aligned, and the tensors
            # of a shard are views into one array.
            tall = delta.T.to(dtype, copy=True, memory_format=torch.contiguous_format)
            right.addmm_(gram.to(dtype), tall, alpha=self.non_diagonal)
            right.addcmul_(extra[:, None].to(dtype), tall)
        return torch.cholesky_solve(right, self.lower).T


def least_squares(
    method: str,
    vectors: TaskVectors,
    statistics: Mapping[str, Tensor],
    non_diagonal: float,
    ridge: float,
) -> dict[str, Tensor]:
    """Matrices with a statistic by least squares, all else by the mean.

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
    known: dict[tuple[str, torch.dtype], Normal] = {}

    def normal(name: str, deltas: Tensor, dtype: torch.dtype) -> Normal:
        key = statistics.key(name) if isinstance(statistics, Statistics) else name
        if (key, dtype) not in known:
            known.clear()  # q, k and v come one after the other: one is kept
            width = deltas.shape[2]
            grams = sized(method, statistics, name, (tasks, width, width), deltas.device)
            known[key, dtype] = factor(method, name, grams, non_diagonal, ridge, dtype)
        return known[key, dtype]

    def fill(name: str, out: Tensor) -> None:
        base, deltas = vectors.base[name], vectors.deltas[name]
        if name not in statistics or deltas.ndim != 3:
            mix_tensor(out, base, deltas, [1.0] * tasks, scale=1 / tasks)
            return
        dtype = accumulator(out.dtype, base.dtype, deltas.dtype)
        moved = normal(name, deltas, dtype).solve(deltas)
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
    """The factor in `dtype`, or in float64 where it cannot be had there.

    Raises:
        InputError: Gram matrices that are not finite; a sum that is singular.
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
