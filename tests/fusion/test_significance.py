"""Intervals and tests, against their definitions."""

from __future__ import annotations

import math
import re
from statistics import NormalDist

import numpy as np
import pytest
import torch

from fusion.errors import InputError
from fusion.significance import holm, mcnemar, mean_interval, wilson

Z = NormalDist().inv_cdf(0.975)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (8, 10), (10, 10), (1, 1), (5031, 8041)])
def test_wilson_limits_lie_z_standard_errors_away(correct: int, n: int) -> None:
    p = correct / n
    for limit in wilson(correct, n):
        if 0 < limit < 1:
            assert abs(p - limit) == pytest.approx(Z * math.sqrt(limit * (1 - limit) / n))


def test_wilson_known_values() -> None:
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson(10, 10)[1] == 1.0


def test_wilson_levels_nest() -> None:
    wide, narrow = wilson(30, 50, 0.99), wilson(30, 50, 0.9)
    assert wide[0] < narrow[0] < 0.6 < narrow[1] < wide[1]


def test_wilson_contains_the_proportion_at_the_ends() -> None:
    for n in range(1, 200):
        assert wilson(0, n)[0] == 0.0
        assert wilson(n, n)[1] == 1.0


@pytest.mark.parametrize(("correct", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_wilson_wants_counts(correct: int, n: int) -> None:
    with pytest.raises(InputError, match=re.escape(f"{correct} of {n} correct: not a proportion")):
        wilson(correct, n)


def test_mean_interval_of_one_is_wilson() -> None:
    assert mean_interval([(8, 10)]) == pytest.approx(wilson(8, 10))


def test_mean_interval_by_hand() -> None:
    (l1, u1), (l2, u2) = wilson(8, 10), wilson(30, 40)
    low = 0.775 - math.sqrt((0.8 - l1) ** 2 + (0.75 - l2) ** 2) / 2
    high = 0.775 + math.sqrt((u1 - 0.8) ** 2 + (u2 - 0.75) ** 2) / 2
    assert mean_interval([(8, 10), (30, 40)]) == pytest.approx((low, high))


def test_mean_interval_stays_in_the_unit_interval() -> None:
    assert mean_interval([(0, 3), (0, 5)])[0] == 0.0
    assert mean_interval([(3, 3), (5, 5)])[1] == 1.0
    with pytest.raises(InputError, match="no accuracies"):
        mean_interval([])


def test_mean_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(0)
    rates, sizes = np.array([0.95, 0.7, 0.5, 0.9]), np.array([40, 100, 60, 30])
    draws = rng.binomial(sizes, rates, size=(2000, 4))
    hits = 0
    for draw in draws:
        low, high = mean_interval(list(zip(draw.tolist(), sizes.tolist(), strict=True)))
        hits += low <= rates.mean() <= high
    assert 0.93 < hits / 2000 < 0.97


def discordant(only_a: int, only_b: int, both: int = 5) -> tuple[list[bool], list[bool]]:
    a = [True] * only_a + [False] * only_b + [True] * both
    b = [False] * only_a + [True] * only_b + [True] * both
    return a, b


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 9), (9, 1), (3, 4), (0, 6), (20, 41)])
def test_mcnemar_is_the_exact_binomial_tail(only_a: int, only_b: int) -> None:
    n, low = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(low + 1)) / 2**n
    assert mcnemar(*discordant(only_a, only_b)) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_counts_disagreements_only() -> None:
    assert mcnemar(*discordant(1, 9, both=0)) == mcnemar(*discordant(1, 9, both=1000))
    assert mcnemar(*discordant(0, 0)) == 1.0
    assert mcnemar(*discordant(4, 4)) == 1.0


def test_mcnemar_takes_arrays_and_tensors() -> None:
    a, b = discordant(1, 9)
    expected = mcnemar(a, b)
    assert mcnemar(np.array(a), np.array(b)) == expected
    assert mcnemar(torch.tensor(a), torch.tensor(b)) == expected


def test_mcnemar_wants_the_same_samples() -> None:
    with pytest.raises(InputError, match="2 and 3 samples"):
        mcnemar([True, False], [True, False, True])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_of_one_changes_nothing() -> None:
    assert holm([0.03]) == [0.03]
