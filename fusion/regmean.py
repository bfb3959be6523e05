"""RegMean and RegMean++: linear layers that best reproduce all experts' outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.coding import mix_tensor
from fusion.errors import InputError
from fusion.state import TaskVectors, accumulator
from fusion.statistics import Asked, Statistics, checked

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
        InputError: statistics of another shape; a sum of Gram matrices that is singular.

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


def least_squares(
    method: str,
    vectors: TaskVectors,
    statistics: Mapping[str, Tensor],
    non_diagonal: float,
    ridge: float,
) -> dict[str, Tensor]:
    """Matrices with a statistic by least squares, all else by the mean."""
    tasks = len(vectors.tasks)
    solved: tuple[str, tuple[Tensor, Tensor] | None] = ("", None)

    def factored(name: str, width: int) -> tuple[Tensor, Tensor]:
        nonlocal solved
        key = statistics.key(name) if isinstance(statistics, Statistics) else name
        if solved[0] != key or solved[1] is None:
            grams = checked(method, statistics, name, (tasks, width, width))
            solved = key, factor(method, name, grams, non_diagonal, ridge)
        return solved[1]  # type: ignore[return-value]

    def fill(name: str, out: Tensor) -> None:
        base, deltas = vectors.base[name], vectors.deltas[name]
        if name not in statistics or deltas.ndim != 3:
            mix_tensor(out, base, deltas, [1.0] * tasks, scale=1 / tasks)
            return
        dtype = accumulator(out.dtype, base.dtype, deltas.dtype)
        grams, lower = factored(name, deltas.shape[2])
        # Σ_t Ĝ_t τ_tᵀ as one product: [in, T·in] by [T·in, out].
        _, rows, width = deltas.shape
        wide = grams.transpose(0, 1).reshape(width, tasks * width)
        tall = deltas.transpose(1, 2).reshape(tasks * width, rows)
        exact = accumulator(grams.dtype, dtype)
        right = wide.to(exact) @ tall.to(exact)
        moved = torch.cholesky_solve(right, lower.to(exact)).T
        out.copy_(base.to(dtype) + moved.to(dtype))

    return vectors.build(fill)


def factor(
    method: str, name: str, grams: Tensor, non_diagonal: float, ridge: float
) -> tuple[Tensor, Tensor]:
    """(Ĝ [T, in, in], L with LLᵀ = Σ_t Ĝ_t), in float32 where that can be factorised, else float64.

    Raises:
        InputError: the sum is singular.
    """
    hat = reduced(grams, non_diagonal, ridge)
    lower, bad = torch.linalg.cholesky_ex(hat.sum(0))
    if not int(bad) and bool(lower.isfinite().all()):
        return hat, lower
    hat = reduced(grams.double(), non_diagonal, ridge)
    lower, bad = torch.linalg.cholesky_ex(hat.sum(0))
    if int(bad):
        raise InputError(
            f"{method}: tensor {name!r}: the sum of its Gram matrices is singular at row"
            f" {int(bad)} of {len(lower)}: too few examples, or inputs that never vary; a larger"
            f" ridge than {ridge:g}, more examples or a smaller non_diagonal than"
            f" {non_diagonal:g} needed"
        )
    return hat, lower


def reduced(grams: Tensor, non_diagonal: float, ridge: float) -> Tensor:
    """α·G + (1 − α)·diag G + ρ·mean(diag G)·I of [T, in, in]; its input is not written to."""
    hat = grams * non_diagonal
    diagonal = grams.diagonal(dim1=1, dim2=2)
    hat.diagonal(dim1=1, dim2=2).copy_(diagonal + ridge * diagonal.mean(1, keepdim=True))
    return hat
