"""Grid search over classifier hyper-parameters, on features that are computed once.

What does not depend on a hyper-parameter is computed once: affinities and zero-shot logits once in
total, the cache's logits once for each β. Logits are linear in α, so each α costs one addition, or
the best α is found exactly.

Axes: N rows, NK keys, C classes, M heads, R values of β or T, A values of α.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.logits.dataset import check_labels
from fusion.logits.exact_alpha import exact_alpha
from fusion.methods.classifiers.cafo import (
    Compat,
    Normalisation,
    agreements,
    check_heads,
    divisor,
    mixture,
)
from fusion.methods.classifiers.tip_adapter import cache_logits, check_plane
from fusion.task_vectors.task_vectors import accumulator

DRAWN = (0.0, *(10 ** (j / 10) for j in range(-20, 41)))
"""Values of α for plots of accuracy if α is exact: 0, and ten values a decade from 0.01 to
10000."""

BUDGET = 2**26
"""Default bytes of temporary affinities: 64 MiB."""

Reach: TypeAlias = tuple[float, float, float, float]
"""(accuracy, lowest α, highest α, chosen α)."""


@dataclass(frozen=True)
class Point:
    """One configuration of the search and its accuracy."""

    value: float
    """β or T."""
    alpha: float
    accuracy: float
    low: float
    """Start of the interval of α with this accuracy."""
    high: float
    """End of that interval."""


@dataclass(frozen=True, eq=False)
class Surface:
    """Accuracy over (β, α) or (T, α); all tensors are float64, on the CPU."""

    name: Literal["beta", "temperature"]
    """Name of the hyper-parameter in `values`."""
    values: Tensor
    """[R], as given."""
    accuracy: Tensor
    """[R]: the best accuracy over α."""
    low: Tensor
    """[R]: start of the widest plateau of that accuracy."""
    high: Tensor
    """[R]: end of that plateau; infinite if no α is too large."""
    alpha: Tensor
    """[R]: middle of the plateau; on a grid, the middle grid point (the lower of two)."""
    alphas: Tensor
    """[A], ascending: the grid of α; if α is exact, the values at which accuracy is evaluated for
    plots."""
    grid: Tensor
    """[R, A]: accuracies at `values` and `alphas`."""

    @property
    def best(self) -> Point:
        """The most accurate configuration, and the smoothest among equal ones.

        Among values with the same accuracy it is the smallest β or the largest T, so that more keys
        or heads have influence. α is the middle of that value's widest plateau.
        """
        sign = 1 if self.name == "beta" else -1
        tied = (self.accuracy == self.accuracy.max()).nonzero()[:, 0].tolist()
        row = min(tied, key=lambda r: sign * float(self.values[r]))
        chosen = (self.values, self.alpha, self.accuracy, self.low, self.high)
        return Point(*(float(column[row]) for column in chosen))


def tip_surface(
    zero_shot_logits: Tensor,
    affinity: Tensor,
    values: Tensor,
    labels: Tensor,
    betas: Sequence[float],
    *,
    alphas: Sequence[float] | None = None,
    low: float = 0.0,
    high: float = math.inf,
    budget_bytes: int = BUDGET,
) -> Surface:
    """Accuracy of Tip-Adapter, z₀ + α·exp(−β(1 − affinity))V, over β and α.

    One matrix product for each β.

    Args:
        zero_shot_logits: z₀ [N, C], logit scale included.
        affinity: [N, NK], from `tip_adapter.affinities`.
        values: V [NK, C], one-hot labels of the keys.
        labels: int64 [N], of a split that is neither reported on nor contains the keys.
        betas: R values, 0 or more, in any order.
        alphas: ascending grid of A values. Default: the exact best α of each β in [`low`, `high`].
        low: smallest α, if α is exact. Default 0.
        high: largest α, if α is exact. Default infinity.
        budget_bytes: memory of the temporary exp(−β(1 − affinity)); rows are processed in chunks
            that fit. Default 64 MiB.

    Raises:
        InputError: wrong shapes, NaN, a label outside, no β, a negative or infinite β, α not
            ascending.

    Source: Zhang et al. 2022, arXiv:2207.09519. Deviations: its code computes affinities and
    zero-shot logits anew at each of 200 × 20 points, never tries α = 0, and takes the first of
    equal points.

    >>> zero_shot, near = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> found = tip_surface(zero_shot, near, torch.eye(2), torch.tensor([1]), [5.0], alphas=[0, 2])
    >>> found.grid.tolist(), found.best.alpha
    ([[0.0, 1.0]], 2.0)
    """
    check_plane(zero_shot_logits, affinity, values)
    dtype = accumulator(zero_shot_logits.dtype, affinity.dtype, values.dtype)
    affinity, votes = affinity.to(dtype), values.to(dtype)
    # Per row: the affinities minus one, times β, and their exponentials, hence two copies.
    rows = max(1, budget_bytes // (2 * affinity.shape[1] * affinity.element_size()))

    def cache(beta: float) -> Tensor:
        return torch.cat([cache_logits(part, votes, beta) for part in torch.split(affinity, rows)])

    checked = numbers("betas", betas)
    zero_shot = zero_shot_logits.to(dtype)
    return surface("beta", checked, cache, zero_shot, labels, alphas, low, high)


def cafo_surface(
    zero_shot_logits: Tensor,
    heads: Tensor,
    labels: Tensor,
    temperatures: Sequence[float],
    *,
    alphas: Sequence[float] | None = None,
    low: float = 0.0,
    high: float = math.inf,
    normalisation: Normalisation = "zscore",
    reference: int | None = None,
    compat: Compat = None,
) -> Surface:
    """Accuracy of `cafo` over T and α; heads are normalised and compared once.

    Args:
        zero_shot_logits: z₀ [N, C].
        heads: [M, N, C], logits of each head.
        labels: int64 [N], of a split that is neither reported on nor trained on.
        temperatures: R values of T, 0 or more; infinity is the mean.
        alphas: as for `tip_surface`.
        low: as for `tip_surface`.
        high: as for `tip_surface`.
        normalisation: as for `cafo`.
        reference: as for `cafo`.
        compat: as for `cafo`.

    Raises:
        InputError: see `cafo` and `tip_surface`.
    """
    check_heads(zero_shot_logits, heads, reference)
    dtype = accumulator(zero_shot_logits.dtype, heads.dtype)
    zero_shot = zero_shot_logits.to(dtype)
    hats, agreement = agreements(zero_shot, heads.to(dtype), normalisation, reference)
    factor = divisor(heads.shape[-1], normalisation, compat)

    def fused(temperature: float) -> Tensor:
        return mixture(hats, agreement, temperature * factor)

    checked = numbers("temperatures", temperatures, infinite=True)
    return surface("temperature", checked, fused, zero_shot, labels, alphas, low, high)


def surface(
    name: Literal["beta", "temperature"],
    values: Sequence[float],
    direction: Callable[[float], Tensor],
    zero_shot: Tensor,
    labels: Tensor,
    alphas: Sequence[float] | None,
    low: float,
    high: float,
) -> Surface:
    """Accuracy of z₀ + α·direction(value) [N, C] over values and α."""
    check_labels("labels", labels, len(zero_shot), zero_shot.shape[1])
    steps = drawn(low, high) if alphas is None else ascending("alphas", alphas)
    rows: list[Reach] = []
    grid: list[list[float]] = []
    for value in values:
        slope = direction(value)
        if alphas is None:
            found = exact_alpha(zero_shot, slope, labels, low=low, high=high, at=steps)
            rows.append((found.accuracy, found.low, found.high, found.middle))
            grid.append(list(found.curve))
        else:
            grid.append(accuracies(zero_shot, slope, labels, steps))
            rows.append(plateau(grid[-1], steps))
    columns = torch.tensor(rows, dtype=torch.float64).T
    return Surface(
        name=name,
        values=torch.tensor(values, dtype=torch.float64),
        accuracy=columns[0],
        low=columns[1],
        high=columns[2],
        alpha=columns[3],
        alphas=torch.tensor(steps, dtype=torch.float64),
        grid=torch.tensor(grid, dtype=torch.float64),
    )


def drawn(low: float, high: float) -> list[float]:
    """Values of α for plots: those of `DRAWN` in [low, high], and the ends."""
    inside = {alpha for alpha in DRAWN if low <= alpha <= high}
    return sorted(inside | {low} | ({high} if math.isfinite(high) else set()))


def accuracies(
    zero_shot: Tensor, slope: Tensor, labels: Tensor, alphas: Sequence[float]
) -> list[float]:
    """Accuracy of argmax(z₀ + α·slope) at each α, with one buffer of logits."""
    buffer = torch.empty_like(zero_shot)
    hits = [
        (torch.add(zero_shot, slope, alpha=alpha, out=buffer).argmax(-1) == labels).sum()
        for alpha in alphas
    ]
    return [count / len(labels) for count in torch.stack(hits).tolist()]


def plateau(accuracy: Sequence[float], alphas: Sequence[float]) -> Reach:
    """The widest run of best grid points: (accuracy, first α, last α, middle α).

    The first of equally wide runs is taken, and the lower of two middle points.

    >>> plateau([0.5, 0.9, 0.9, 0.9, 0.8], [0, 1, 2, 3, 4])
    (0.9, 1, 3, 2)
    """
    best = max(accuracy)
    runs: list[tuple[int, int]] = []
    for index, value in enumerate(accuracy):
        if value != best:
            continue
        if runs and runs[-1][1] == index - 1:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    first, last = max(runs, key=lambda run: alphas[run[1]] - alphas[run[0]])
    return best, alphas[first], alphas[last], alphas[(first + last) // 2]


def numbers(name: str, values: Sequence[float], infinite: bool = False) -> list[float]:
    """`values` as floats.

    Raises:
        InputError: no value, or one that is negative, NaN or (unless allowed) infinite.
    """
    if not len(values):
        raise InputError(f"{name}: none given; 1 or more needed")
    for value in values:
        if not value >= 0 or (value == math.inf and not infinite):
            allowed = "0 or more" if infinite else "a finite number, 0 or more,"
            raise InputError(f"{name}: {value}; {allowed} allowed")
    return [float(value) for value in values]


def ascending(name: str, values: Sequence[float]) -> list[float]:
    """`values` as floats, each larger than the one before.

    Raises:
        InputError: they are not ascending, or one is negative, NaN or infinite.
    """
    checked = numbers(name, values)
    for before, after in pairwise(checked):
        if after <= before:
            raise InputError(f"{name}: {after:g} after {before:g}; ascending values needed")
    return checked
