"""Intervals and tests, against their definitions."""

from __future__ import annotations

import math
import re
from statistics import NormalDist

import numpy as np
import pytest
import torch

from fusion.analysis.significance import (
    accept_interval,
    bootstrap_interval,
    bootstrap_scores,
    bootstrap_test,
    holm,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    sign_flips,
    wilson,
)
from fusion.errors import InputError

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


def pairs(n: int, worse: int, better: int) -> tuple[np.ndarray, np.ndarray]:
    """Correctness of two classifiers on n samples, of which each alone has so many right."""
    at = np.arange(n)
    return at < worse, (at >= worse) & (at < worse + better)


def test_gain_on_one_task_is_that_of_its_samples() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(400) < 0.8
    after = np.where(rng.random(400) < 0.1, ~before, before)
    gain = accept_interval([before], [after], seed=1)
    difference = after.astype(float) - before
    resampled = difference[rng.integers(0, 400, (4000, 400))].mean(1)  # the definition
    assert gain.difference == pytest.approx(difference.mean())
    assert gain.low == pytest.approx(np.quantile(resampled, 0.025), abs=0.004)
    assert gain.high == pytest.approx(np.quantile(resampled, 0.975), abs=0.004)
    assert gain.p == mcnemar(before, after)
    assert gain == accept_interval([before], [after], seed=1)


def test_gain_over_tasks_is_that_of_their_mean() -> None:
    # 100 samples: 30 gained, 10 lost; 1000: 20 gained, 40 lost. Pooled, nothing is gained.
    small, large = pairs(100, 10, 30), pairs(1000, 40, 20)
    before, after = zip(small, large, strict=True)
    difference, low, high = paired_bootstrap(before, after, samples=200_000)
    assert difference == pytest.approx((0.2 - 0.02) / 2)
    # Var of a task's mean difference: (share that differs − difference²)/n; the mean of two: /4.
    variance = ((0.4 - 0.2**2) / 100 + (0.06 - 0.02**2) / 1000) / 4
    assert (high - low) / (2 * Z) == pytest.approx(math.sqrt(variance), rel=0.03)
    assert low > 0


def test_p_over_tasks_of_one_size_is_exact_and_else_drawn() -> None:
    first, second = pairs(50, 1, 6), pairs(50, 2, 3)
    before, after = zip(first, second, strict=True)
    assert sign_flips(before, after) == mcnemar(np.concatenate(before), np.concatenate(after))
    # One discordant sample in 2, three in 4: of 16 outcomes |±1/2 ± 3/4|, … as large as 5/4: 2.
    before, after = zip(pairs(2, 0, 1), pairs(4, 0, 3), strict=True)
    assert sign_flips(before, after) == pytest.approx(2 / 16, abs=0.005)
    same = [np.ones(3, bool), np.zeros(5, bool)]
    assert sign_flips(same, same) == 1.0


def test_bootstrap_levels_nest_and_equal_classifiers_have_no_width() -> None:
    a = np.arange(200) % 3 == 0
    b = np.arange(200) % 5 == 0
    difference, low, high = paired_bootstrap([a], [b], level=0.99)
    _, lower, upper = paired_bootstrap([a], [b], level=0.5)
    assert low < lower < difference < upper < high
    assert paired_bootstrap([a], [a]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([[]], [[]], "0 and 0 samples: a paired interval needs the same ones"),
        ([[1]], [[1, 0]], "1 and 2 samples: a paired interval needs the same ones"),
        ([[1]], [[1], [0]], "1 and 2 tasks: a paired interval needs the same ones"),
        ([], [], "0 and 0 tasks: a paired interval needs the same ones"),
    ],
)
def test_what_cannot_be_paired(before: list, after: list, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        accept_interval(before, after)


def spread(rows: np.ndarray) -> float:
    """A score that is no mean over rows: their standard deviation."""
    return float(rows.std())


def test_bootstrap_scores_are_those_of_rows_drawn_by_hand() -> None:
    given = [np.array([0.0, 1.0, 5.0]), np.array([2.0, 3.0])]
    generator = np.random.default_rng(7)
    rows = [generator.integers(len(each), size=(50, len(each))) for each in given]
    by_hand = [(spread(given[0][rows[0][r]]) + spread(given[1][rows[1][r]])) / 2 for r in range(50)]
    drawn = bootstrap_scores(given, spread, resamples=50, seed=7)
    assert drawn.dtype == np.float64
    assert drawn.tolist() == by_hand
    assert bootstrap_interval(drawn) == tuple(np.quantile(by_hand, [0.025, 0.975]))


def test_bootstrap_scores_of_a_mean_spread_as_its_standard_error() -> None:
    rows = np.random.default_rng(0).standard_normal(400)
    drawn = bootstrap_scores([rows], lambda each: float(each.mean()), resamples=4000)
    assert drawn.std() == pytest.approx(rows.std() / 20, rel=0.05)


def test_bootstrap_test_counts_resamples_on_the_other_side() -> None:
    change = np.array([0.1] * 95 + [-0.1] * 4 + [math.nan])
    assert bootstrap_test(np.zeros(100), change) == pytest.approx(2 * 5 / 100)
    assert bootstrap_test(np.zeros(100), -change) == bootstrap_test(np.zeros(100), change)
    assert bootstrap_test(np.zeros(9), np.zeros(9)) == 1.0
    assert bootstrap_test(np.full(3, math.nan), np.zeros(3)) == 1.0


def test_the_bootstrap_refuses_what_it_cannot_resample_or_pair() -> None:
    with pytest.raises(InputError, match="no rows"):
        bootstrap_scores([np.zeros(0)], spread)
    with pytest.raises(InputError, match="3 and 4 resamples"):
        bootstrap_test(np.zeros(3), np.zeros(4))
    assert all(map(math.isnan, bootstrap_interval(np.full(3, math.nan))))
