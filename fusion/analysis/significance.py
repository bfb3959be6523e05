"""Confidence intervals of accuracies, and exact tests for the difference of two classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from fusion.errors import InputError


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion: those p with |p̂ − p| ≤ z·√(p(1 − p)/n).

    Unlike p̂ ± z·√(p̂(1 − p̂)/n) it stays inside [0, 1] and has a positive width at p̂ = 0 and 1.

    Args:
        correct: successes, 0 to n.
        n: trials, at least 1.
        level: coverage, in (0, 1). Default 0.95.

    Raises:
        InputError: correct is not in 0 to n, or n is below 1.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209.

    >>> [round(limit, 4) for limit in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if not 0 <= correct <= n or n < 1:
        raise InputError(f"{correct} of {n} correct: not a proportion")
    z = float(scipy.stats.norm.ppf(0.5 + level / 2))
    p, spread = correct / n, z * z / n
    middle = (p + spread / 2) / (1 + spread)
    half = math.sqrt(p * (1 - p) * spread + spread**2 / 4) / (1 + spread)
    # At the ends the limit is the end itself; rounding must not move it past the proportion.
    return max(0.0, min(middle - half, p)), min(1.0, max(middle + half, p))


def mean_interval(counts: Sequence[tuple[int, int]], level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the unweighted mean of T independent accuracies (MOVER).

    From mean(p̂) − (1/T)·√Σ_t(p̂_t − l_t)² to mean(p̂) + (1/T)·√Σ_t(u_t − p̂_t)² ("square and
    add"), where (l_t, u_t) is the Wilson interval of p̂_t. For T = 1 it is the Wilson interval.

    Args:
        counts: T pairs (correct, n).
        level: coverage, in (0, 1). Default 0.95.

    Raises:
        InputError: no counts, or invalid ones.

    Source: Newcombe 1998, Stat. Med. 17, 873; Zou & Donner 2008, Stat. Med. 27, 1693.
    """
    if not counts:
        raise InputError("no accuracies: nothing to take the mean of")
    limits = [wilson(correct, n, level) for correct, n in counts]
    rates = [correct / n for correct, n in counts]
    mean = math.fsum(rates) / len(rates)
    down = math.hypot(*(p - low for p, (low, _) in zip(rates, limits, strict=True)))
    up = math.hypot(*(high - p for p, (_, high) in zip(rates, limits, strict=True)))
    return max(0.0, mean - down / len(rates)), min(1.0, mean + up / len(rates))


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Exact McNemar test: two-sided p-value that two classifiers are equally accurate.

    It is a binomial test on the samples that only one of the two gets right; under the null
    hypothesis half of them are A's. The p-value is 1 if there are none.

    Args:
        correct_a: [N], whether classifier A is right on each sample.
        correct_b: the same for B, on the same samples in the same order.

    Raises:
        InputError: different numbers of samples.

    Source: McNemar 1947, Psychometrika 12, 153, with the exact binomial distribution.

    >>> mcnemar([True, True, True, False], [False, False, False, False])
    0.25
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.shape != b.shape:
        raise InputError(f"{a.size} and {b.size} samples: a paired test needs the same ones")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired_bootstrap(
    correct_a: Sequence[ArrayLike],
    correct_b: Sequence[ArrayLike],
    *,
    level: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Paired bootstrap: mean over T tasks of accuracy(B) − accuracy(A), with a percentile interval.

    Stratified: pairs are resampled within each task, and the T differences are averaged, so the
    variance is (1/T²)·Σ_t var_t. Resampling N pairs with replacement is the same as drawing how
    often each of the differences −1, 0 and 1 occurs: one multinomial for each task and resample.

    Args:
        correct_a: T arrays [N_t], whether classifier A is right on each sample of a task.
        correct_b: the same for B, on the same samples in the same order.
        level: coverage, in (0, 1). Default 0.95.
        samples: resamples. Default 10,000.
        seed: of numpy's default generator.

    Returns:
        Difference, low, high.

    Raises:
        InputError: different tasks or samples, or none.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, §8.3 (several samples) and
    §13.3 (percentile interval).
    """
    counts = discordant(correct_a, correct_b)
    generator = np.random.default_rng(seed)
    drawn = np.zeros(samples)
    for n, worse, better in counts:
        shares = np.array([worse, n - worse - better, better]) / n
        many = generator.multinomial(n, shares, size=samples)
        drawn += (many[:, 2] - many[:, 0]) / n
    low, high = np.quantile(drawn / len(counts), [0.5 - level / 2, 0.5 + level / 2])
    return mean_difference(counts), float(low), float(high)


def sign_flips(
    correct_a: Sequence[ArrayLike],
    correct_b: Sequence[ArrayLike],
    *,
    samples: int = 100_000,
    seed: int = 0,
) -> float:
    """Paired permutation test: two-sided p-value that the mean accuracy difference is zero.

    The difference is the mean over T tasks of accuracy(B) − accuracy(A). Under the null hypothesis
    each sample that only one classifier gets right is A's or B's with equal probability. If all
    tasks have the same size, this is the exact McNemar test of all samples together. Otherwise each
    task's number of B's samples is drawn from its binomial distribution, and p = (1 + number of
    draws with |mean difference| at least the observed one) / (1 + samples).

    Args:
        correct_a: T arrays [N_t], whether classifier A is right on each sample of a task.
        correct_b: the same for B, on the same samples in the same order.
        samples: draws, if the test is not exact. Default 100,000.
        seed: of numpy's default generator.

    Raises:
        InputError: different tasks or samples, or none.

    Source: McNemar 1947; Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9, 39 (the 1 +).
    """
    counts = discordant(correct_a, correct_b)
    if len({n for n, _, _ in counts}) == 1:
        return mcnemar(*(np.concatenate(list(map(np.asarray, each))) for each in
                         (correct_a, correct_b)))  # fmt: skip
    generator = np.random.default_rng(seed)
    drawn = np.zeros(samples)
    for n, worse, better in counts:
        theirs = generator.binomial(worse + better, 0.5, size=samples)
        drawn += (2.0 * theirs - (worse + better)) / n
    seen = abs(mean_difference(counts)) * len(counts)
    # Sums of fractions in another order differ in the last bits; equal ones are to count.
    return float((1 + (np.abs(drawn) >= seen - 1e-12).sum()) / (1 + samples))


def discordant(
    correct_a: Sequence[ArrayLike], correct_b: Sequence[ArrayLike]
) -> list[tuple[int, int, int]]:
    """For each task: (samples, those that only A gets right, those that only B gets right).

    Raises:
        InputError: different tasks or samples, or none.
    """
    if len(correct_a) != len(correct_b) or not len(correct_a):
        raise InputError(
            f"{len(correct_a)} and {len(correct_b)} tasks: a paired interval needs the same ones"
        )
    found = []
    for first, second in zip(correct_a, correct_b, strict=True):
        a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
        if a.shape != b.shape or a.size == 0:
            raise InputError(
                f"{a.size} and {b.size} samples: a paired interval needs the same ones"
            )
        found.append((a.size, int((a & ~b).sum()), int((b & ~a).sum())))
    return found


def mean_difference(counts: Sequence[tuple[int, int, int]]) -> float:
    """Mean over tasks of accuracy(B) − accuracy(A), from `discordant`."""
    return math.fsum((better - worse) / n for n, worse, better in counts) / len(counts)


def bootstrap_scores(
    samples: Sequence[NDArray[Any]],
    score: Callable[[NDArray[Any]], float],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Bootstrap distribution of the mean over T tasks of a score; rows are resampled by task.

    Resample r draws the same rows for all models with the same numbers of rows and the same seed,
    so the results of two models are paired.

    Args:
        samples: T arrays [N_t, …], what the score reads of each row.
        score: score of an array of rows; NaN if it is undefined.
        resamples: R. Default 2000.
        seed: of numpy's default generator.

    Returns:
        [R]; NaN if a task's score is NaN.

    Raises:
        InputError: no task, or one without rows.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, §8.3 (several samples).
    """
    if not samples or not all(len(each) for each in samples):
        raise InputError("no rows: nothing to resample")
    generator = np.random.default_rng(seed)
    drawn = np.zeros(resamples)
    for each in samples:
        rows = generator.integers(len(each), size=(resamples, len(each)))
        drawn += [score(each[chosen]) for chosen in rows]
    return drawn / len(samples)


def bootstrap_interval(drawn: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of `bootstrap_scores`, without NaN; (NaN, NaN) if all are NaN.

    Source: Efron & Tibshirani 1993, §13.3.
    """
    known = drawn[np.isfinite(drawn)]
    if not known.size:
        return math.nan, math.nan
    low, high = np.quantile(known, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def bootstrap_test(drawn_a: NDArray[np.float64], drawn_b: NDArray[np.float64]) -> float:
    """Two-sided p-value that two models have equal scores, from their paired `bootstrap_scores`.

    p = 2 · (1 + the smaller of the numbers of resamples with difference ≤ 0 and with difference ≥
    0) / (1 + R), at most 1: the level at which the percentile interval of the difference excludes
    0. Resamples in which a score is undefined are left out; if none remain, p is 1.

    Raises:
        InputError: different numbers of resamples.

    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, §5.4; Phipson & Smyth
    2010 (the 1 +).
    """
    if drawn_a.shape != drawn_b.shape:
        raise InputError(f"{drawn_a.size} and {drawn_b.size} resamples: a pair needs as many")
    change = (drawn_b - drawn_a)[np.isfinite(drawn_a) & np.isfinite(drawn_b)]
    if not change.size:
        return 1.0
    fewer = min(int((change <= 0).sum()), int((change >= 0).sum()))
    return min(1.0, 2 * (1 + fewer) / (1 + change.size))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (step-down Bonferroni), in the order given.

    Source: Holm 1979, Scand. J. Stat. 6, 65.

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    adjusted = [0.0] * len(pvalues)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=lambda i: pvalues[i])):
        highest = max(highest, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True)
class Gain:
    """Gain of an accepted step, with its uncertainty."""

    difference: float
    """Mean accuracy over tasks after the step minus that before."""
    low: float
    high: float
    """Ends of its paired 95 % bootstrap interval."""
    p: float
    """p-value of no difference: `sign_flips`; for one task the exact McNemar test."""


def accept_interval(
    before: Sequence[ArrayLike],
    after: Sequence[ArrayLike],
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> Gain:
    """Gain of an accepted step in mean accuracy over T tasks, on the samples that decided it.

    The step was chosen by these samples. So the interval compares the gain with the noise, and is
    no estimate of the gain on new data.

    Args:
        before: T arrays [N_t], whether the subset before is right on each sample of a task.
        after: the same for the subset after.
        samples: bootstrap resamples. Default 10,000.
        seed: of the bootstrap.

    Raises:
        InputError: different tasks or samples, or none.

    >>> gain = accept_interval([[0, 0, 1, 1], [0, 1]], [[1, 0, 1, 1], [0, 1]])
    >>> gain.difference, gain.low  # 1/4 and 0, not 1/6
    (0.125, 0.0)
    """
    difference, low, high = paired_bootstrap(before, after, samples=samples, seed=seed)
    return Gain(difference, low, high, sign_flips(before, after, seed=seed))
