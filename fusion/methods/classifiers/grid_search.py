"""Grid search over classifier hyper-parameters, on features that are computed once.

What does not depend on a hyper-parameter is never computed again: affinities and zero-shot logits
not at all, the cache's logits once a β, and α, in which logits are linear, by a sum or exactly.

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
"""Where accuracy is looked up for a picture, where α is exact: 0, and ten values a decade from
0.01 to 10000."""

BUDGET = 2**26
"""Default bytes of temporary affinities: 64 MiB."""

Reach: TypeAlias = tuple[float, float, float, float]
"""Accuracy, lowest α, highest α, the α taken."""


@dataclass(frozen=True)
class Point:
    """One configuration."""

    value: float
    """β or T."""
    alpha: float
    accuracy: float
    low: float
    """Between this α and `high` accuracy is the same."""
    high: float


@dataclass(frozen=True, eq=False)
class Surface:
    """Accuracy over (β, α) or (T, α); all float64, on the CPU."""

    name: Literal["beta", "temperature"]
    """What `values` are."""
    values: Tensor
    """[R], as given."""
    accuracy: Tensor
    """[R]: the best over α."""
    low: Tensor
    """[R]: where the widest plateau of that accuracy begins."""
    high: Tensor
    """[R]: and ends; infinite where no α is too large."""
    alpha: Tensor
    """[R]: its middle; of a grid, the middle grid point (the lower of two)."""
    alphas: Tensor
    """[A], ascending: the grid of α; where α is exact, where accuracy was looked up besides."""
    grid: Tensor
    """[R, A]: accuracies at `values` and `alphas`."""

    @property
    def best(self) -> Point:
        """The most accurate configuration: the smoothest of equal ones, in mid-plateau.

        Of values that reach the same accuracy the smallest β or the largest T is taken: more keys,
        or more heads, have a say. α is the middle of that value's widest plateau.
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
    """Accuracy of z₀ + α·exp(−β(1 − affinity))V over β and α: one matrix product a β.

    Args:
        zero_shot_logits: z₀ [N, C], logit scale included.
        affinity: [N, NK], of `tip_adapter.affinities`.
        values: V [NK, C], one-hot labels of the keys.
        labels: int64 [N]; of a split that is neither reported on nor the keys' own.
        betas: R values, 0 or more, in any order.
        alphas: A values, ascending: a grid. Default: the best α of each β exactly, between
            `low` and `high`.
        low: smallest α, where α is exact.
        high: largest α, where α is exact.
        budget_bytes: of the temporary exp(−β(1 − affinity)): rows are taken in chunks that fit it,
            at least one at a time.

    Raises:
        InputError: other shapes, NaN, a label outside, no β, a negative or infinite one, α not
            ascending.

    Source: Zhang et al. 2022, arXiv:2207.09519; its code computes affinities and zero-shot logits
    anew at each of 200 × 20 points, never tries α = 0, and takes the first of equal points.

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
        labels: int64 [N]; of a split that is neither reported on nor learned from.
        temperatures: R values of T, 0 or more; infinity is the mean.
        alphas: as in `tip_surface`.
        low: as in `tip_surface`.
        high: as in `tip_surface`.
        normalisation: as in `cafo`.
        reference: as in `cafo`.
        compat: as in `cafo`.

    Raises:
        InputError: what `cafo` and `tip_surface` say.
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
    """Where accuracy over [low, high] is looked up: what of `DRAWN` lies inside, and the ends."""
    inside = {alpha for alpha in DRAWN if low <= alpha <= high}
    return sorted(inside | {low} | ({high} if math.isfinite(high) else set()))


def accuracies(
    zero_shot: Tensor, slope: Tensor, labels: Tensor, alphas: Sequence[float]
) -> list[float]:
    """Accuracy of argmax(z₀ + α·slope) at each α; one buffer of logits for all."""
    buffer = torch.empty_like(zero_shot)
    hits = [
        (torch.add(zero_shot, slope, alpha=alpha, out=buffer).argmax(-1) == labels).sum()
        for alpha in alphas
    ]
    return [count / len(labels) for count in torch.stack(hits).tolist()]


def plateau(accuracy: Sequence[float], alphas: Sequence[float]) -> Reach:
    """The widest run of best grid points: accuracy, its first and last α, its middle point.

    The first of equally wide runs; of two middle points the lower.

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
        InputError: none, or one that is negative, NaN or (unless allowed) infinite.
    """
    if not len(values):
        raise InputError(f"{name}: none given; 1 or more needed")
    for value in values:
        if not value >= 0 or (value == math.inf and not infinite):
            allowed = "0 or more" if infinite else "a finite number, 0 or more,"
            raise InputError(f"{name}: {value}; {allowed} allowed")
    return [float(value) for value in values]


def ascending(name: str, values: Sequence[float]) -> list[float]:
    """`values` as floats, each above the one before.

    Raises:
        InputError: they are not, or not numbers of 0 or more.
    """
    checked = numbers(name, values)
    for before, after in pairwise(checked):
        if after <= before:
            raise InputError(f"{name}: {after:g} after {before:g}; ascending values needed")
    return checked
