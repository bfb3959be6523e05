"""How sure an accuracy is, and whether two classifiers differ: intervals and exact tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, norm

from fusion.errors import InputError


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion: those p with |p̂ − p| ≤ z·√(p(1 − p)/n).

    Unlike p̂ ± z·√(p̂(1 − p̂)/n) it stays inside [0, 1] and has a width at p̂ = 0 and 1.

    Args:
        correct: successes, 0 to n.
        n: trials, at least 1.
        level: coverage, in (0, 1).

    Raises:
        InputError: counts that are none.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209.

    >>> [round(limit, 4) for limit in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if not 0 <= correct <= n or n < 1:
        raise InputError(f"{correct} of {n} correct: not a proportion")
    z = float(norm.ppf(0.5 + level / 2))
    p, spread = correct / n, z * z / n
    middle = (p + spread / 2) / (1 + spread)
    half = math.sqrt(p * (1 - p) * spread + spread**2 / 4) / (1 + spread)
    # At the ends the limit is the end itself; rounding must not move it past the proportion.
    return max(0.0, min(middle - half, p)), min(1.0, max(middle + half, p))


def mean_interval(counts: Sequence[tuple[int, int]], level: float = 0.95) -> tuple[float, float]:
    """Interval of the unweighted mean of T independent accuracies, square-and-add (MOVER).

    mean(p̂) − (1/T)·√Σ_t(p̂_t − l_t)² to mean(p̂) + (1/T)·√Σ_t(u_t − p̂_t)², where (l_t, u_t) is
    the Wilson interval of p̂_t. For T = 1 it is the Wilson interval.

    Args:
        counts: T pairs (correct, n).
        level: coverage, in (0, 1).

    Raises:
        InputError: no counts, or counts that are none.

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
    """Exact two-sided p-value that two classifiers are equally often right on the same samples.

    Of the samples that only one of them gets right, under the null hypothesis half are A's: the
    binomial test. 1 where they never disagree.

    Args:
        correct_a: [N], whether classifier A is right on each sample.
        correct_b: [N], the same of B, on the same samples in the same order.

    Raises:
        InputError: another number of samples.

    Source: McNemar 1947, Psychometrika 12, 153, with the exact binomial distribution.

    >>> mcnemar([True, True, True, False], [False, False, False, False])
    0.25
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.shape != b.shape:
        raise InputError(f"{a.size} and {b.size} samples: a paired test needs the same ones")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: step-down Bonferroni.

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
