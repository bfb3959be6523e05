"""Effective and relative robustness to distribution shift, on logit axes, as in WiSE-FT.

Accuracies are fractions in [0, 1]. *Reference* is accuracy on the distribution that a model was
fine-tuned on, *shift* accuracy on another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from fusion.errors import InputError

EPSILON = 1e-3
"""Accuracies are clipped to this distance from 0 and 1 before a logit: one image in a thousand."""

TICKS = (0.5, 0.9, 0.1, 0.99, 0.01, 0.7, 0.3, 0.8, 0.2, 0.6, 0.4, 0.95, 0.05, 0.999, 0.001)
"""Round accuracies for axis ticks, the roundest first."""

STEPS = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
"""Steps for ticks of an axis with fewer than three round accuracies; the first that gives three is
used."""


def logit(accuracy: ArrayLike, eps: float = EPSILON) -> NDArray[np.float64]:
    """Logits ln(p/(1 − p)) of accuracies clipped to [eps, 1 − eps], float64.

    Raises:
        InputError: an accuracy outside [0, 1] (NaN too), or an eps outside (0, 0.5).
    """
    if not 0 < eps < 0.5:
        raise InputError(f"eps: {eps!r}; float in (0, 0.5) allowed")
    p = np.asarray(accuracy, dtype=np.float64)
    wrong = p[~((p >= 0) & (p <= 1))]
    if wrong.size:
        raise InputError(f"accuracy: {wrong.flat[0]!s}; a fraction in [0, 1] needed")
    p = p.clip(eps, 1 - eps)
    return np.asarray(np.log(p / (1 - p)))


@dataclass(frozen=True)
class Baseline:
    """Accuracy under shift expected of reference models: σ(slope·logit(reference) + intercept)."""

    slope: float
    intercept: float
    eps: float = EPSILON

    def __call__(self, reference: ArrayLike) -> NDArray[np.float64]:
        """Expected accuracy under shift of models with these reference accuracies."""
        return np.asarray(
            scipy.special.expit(self.slope * logit(reference, self.eps) + self.intercept)
        )


def fit_baseline(reference: ArrayLike, shift: ArrayLike, *, eps: float = EPSILON) -> Baseline:
    """Fit the baseline: least squares of logit(shift) on logit(reference), over K models.

    Args:
        reference: [K].
        shift: [K], of the same models.
        eps: accuracies are clipped to [eps, 1 − eps]. Default 1e-3.

    Raises:
        InputError: fewer than two models, or all with equal accuracy.

    Source: Taori et al. 2020, arXiv:2007.00644; Wortsman et al. 2022, arXiv:2109.01903, §2.
    """
    x, y = logit(reference, eps), logit(shift, eps)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise InputError(
            f"baseline: {x.size} reference and {y.size} shift accuracies;"
            " as many of both, of at least 2 models, needed"
        )
    spread = x - x.mean()
    if not spread @ spread > 1e-12 * max(float(x @ x), 1e-12):
        raise InputError("baseline: all models have one reference accuracy; two different needed")
    slope = float(spread @ (y - y.mean()) / (spread @ spread))
    return Baseline(slope, float(y.mean() - slope * x.mean()), eps)


def effective_robustness(
    baseline: Baseline, reference: ArrayLike, shift: ArrayLike
) -> NDArray[np.float64]:
    """Effective robustness ρ = shift − baseline(reference): accuracy beyond the expected one."""
    return np.asarray(shift, dtype=np.float64) - baseline(reference)


def relative_robustness(shift: ArrayLike, zero_shot_shift: ArrayLike) -> NDArray[np.float64]:
    """Relative robustness: gain of accuracy under shift over the model before fine-tuning."""
    return np.asarray(shift, dtype=np.float64) - np.asarray(zero_shot_shift, dtype=np.float64)


def logit_axis_limits(
    accuracies: ArrayLike, *, margin: float = 0.05, eps: float = EPSILON
) -> tuple[float, float]:
    """Limits (low, high) of a logit-scaled axis for these accuracies, always inside (0, 1).

    The margin is a fraction of their range in logits, or of one logit if the range is smaller.
    (Published plots use 1.05 × the largest accuracy as a limit, which exceeds 1 from 0.953 on,
    where the logit is NaN.)

    Raises:
        InputError: no accuracy, or a number outside [0, 1].

    >>> low, high = logit_axis_limits([0.5, 1.0])
    >>> low < 0.5, 0.999 < high < 1
    (True, True)
    """
    values = logit(accuracies, eps)
    if not values.size:
        raise InputError("axis: no accuracies")
    low, high = float(values.min()), float(values.max())
    spare = margin * max(high - low, 1.0)
    return float(scipy.special.expit(low - spare)), float(scipy.special.expit(high + spare))


def logit_ticks(low: float, high: float, *, gap: float = 0.05) -> list[float]:
    """Ticks of a logit axis: round accuracies within its limits, the rounder ones if they crowd.

    Args:
        low: start of the axis, above 0.
        high: end of the axis, below 1.
        gap: least distance of two ticks, as a fraction of the axis in logits. Default 0.05: our
            choice for a plot as wide as a page.

    Raises:
        InputError: limits that are not 0 < low < high < 1.

    >>> logit_ticks(0.75, 0.96), logit_ticks(0.91, 0.94)
    ([0.8, 0.9, 0.95], [0.91, 0.92, 0.93, 0.94])
    >>> logit_ticks(0.05, 0.95, gap=0.12)
    [0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95]
    """
    if not 0 < low < high < 1:
        raise InputError(f"axis: {low!r} to {high!r}; 0 < low < high < 1 needed")
    there = [tick for tick in TICKS if low <= tick <= high]
    for step in STEPS:
        if len(there) >= 3:
            break
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        ends = [tick for tick in (EPSILON, 1 - EPSILON) if low <= tick <= high]
        there = list(dict.fromkeys([*ends, *(round(n * step, 3) for n in range(first, last + 1))]))
    extent = logit_of(high) - logit_of(low)
    kept: list[float] = []
    for tick in there:
        if all(abs(logit_of(tick) - logit_of(other)) >= gap * extent for other in kept):
            kept.append(tick)
    return sorted(kept)


def logit_of(p: float) -> float:
    """Logit ln(p/(1 − p)) of a number strictly between 0 and 1, not clipped."""
    return math.log(p / (1 - p))


def prediction_diversity(first: ArrayLike, second: ArrayLike, labels: ArrayLike) -> float:
    """Prediction diversity: fraction of samples where two models disagree and one is correct.

    Args:
        first: [N] predicted classes.
        second: [N].
        labels: [N].

    Raises:
        InputError: no samples, or different numbers of them.

    Source: Wortsman et al. 2022, arXiv:2109.01903, App. (measures of diversity).

    >>> prediction_diversity([0, 1, 2, 0], [0, 2, 1, 1], [0, 1, 0, 1])
    0.5
    """
    a, b, y = np.asarray(first), np.asarray(second), np.asarray(labels)
    if not a.shape == b.shape == y.shape or a.ndim != 1 or not a.size:
        raise InputError(f"predictions: {a.size} and {b.size} for {y.size} labels: the same needed")
    return float(np.mean((a == y) != (b == y)))


@dataclass(frozen=True)
class Concavity:
    """Whether accuracy along a path never falls below the line between its ends."""

    holds: bool
    margin: float
    """min over α of Acc(θ_α) − (1 − α)·Acc(θ_0) − α·Acc(θ_1); negative if it does not hold."""
    alpha: float
    """The α of that minimum."""


def concavity(alphas: Sequence[float], accuracies: ArrayLike, *, slack: float = 1e-12) -> Concavity:
    """Check Acc(θ_α) ≥ (1 − α)·Acc(θ_0) + α·Acc(θ_1) on a path that includes both ends.

    Raises:
        InputError: a path without α = 0 or α = 1, or of another length.

    >>> concavity([0, 0.5, 1], [0.5, 0.75, 0.75])
    Concavity(holds=True, margin=0.0, alpha=0.0)
    """
    at, values = path(alphas, accuracies)
    first, last = ends(at, values)
    excess = values - (1 - at) * first - at * last
    worst = int(excess.argmin())
    return Concavity(bool(excess[worst] >= -slack), float(excess[worst]), float(at[worst]))


def beats_both(alphas: Sequence[float], columns: Mapping[str, ArrayLike]) -> list[float]:
    """Values of α at which the fused model is strictly better than both ends on every data set.

    Args:
        alphas: including 0 and 1.
        columns: data set -> accuracy at each α; for WiSE-FT the reference and a shift.

    Raises:
        InputError: no data set, a path without its ends, or of another length.
    """
    if not columns:
        raise InputError("beats_both: no column of accuracies")
    wins = np.ones(len(alphas), dtype=bool)
    for values in columns.values():
        at, column = path(alphas, values)
        wins &= column > max(ends(at, column))
    return [float(alpha) for alpha, win in zip(alphas, wins, strict=True) if win]


def path(
    alphas: Sequence[float], accuracies: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """α and accuracies as float64 arrays of equal length.

    Raises:
        InputError: different lengths, NaN.
    """
    at, values = np.asarray(alphas, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    if at.ndim != 1 or at.shape != values.shape or np.isnan(values).any():
        raise InputError(f"path: {values.size} accuracies at {at.size} alphas; one each needed")
    return at, values


def ends(at: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float]:
    """Accuracies at α = 0 and α = 1.

    Raises:
        InputError: an end is missing.
    """
    found = []
    for end in (0.0, 1.0):
        there = np.flatnonzero(at == end)
        if not there.size:
            raise InputError(f"path: no accuracy at alpha = {end:g}; both ends needed")
        found.append(float(values[there[0]]))
    return found[0], found[1]
