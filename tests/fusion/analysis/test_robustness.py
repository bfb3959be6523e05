"""Effective robustness by hand, axes that survive accuracy near 1, WiSE-FT's checks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fusion.analysis.robustness import (
    Baseline,
    beats_both,
    concavity,
    effective_robustness,
    fit_baseline,
    logit,
    logit_axis_limits,
    logit_ticks,
    prediction_diversity,
    relative_robustness,
)
from fusion.errors import InputError


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_baseline_is_found_again() -> None:
    reference = [0.5, 0.6, 0.75, 0.9]
    shift = [sigma(0.8 * math.log(p / (1 - p)) - 1.2) for p in reference]
    found = fit_baseline(reference, shift)
    assert found.slope == pytest.approx(0.8)
    assert found.intercept == pytest.approx(-1.2)
    np.testing.assert_allclose(effective_robustness(found, reference, shift), 0, atol=1e-12)
    above = effective_robustness(found, 0.75, shift[2] + 0.1)
    assert float(above) == pytest.approx(0.1)


def test_the_baseline_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    reference, shift = rng.uniform(0.3, 0.95, 30), rng.uniform(0.1, 0.9, 30)
    x, y = (np.log(p / (1 - p)) for p in (reference, shift))
    slope, intercept = np.polyfit(x, y, 1)
    found = fit_baseline(reference, shift)
    assert (found.slope, found.intercept) == (pytest.approx(slope), pytest.approx(intercept))


def test_perfect_accuracy_is_clipped() -> None:
    found = fit_baseline([0.0, 0.5, 1.0], [0.0, 0.5, 1.0], eps=0.01)
    assert (found.slope, found.intercept) == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    assert float(found(1.0)) == pytest.approx(0.99)
    assert logit([0.0, 1.0], 0.01).tolist() == [
        pytest.approx(-math.log(99)),
        pytest.approx(math.log(99)),
    ]


def test_relative_robustness() -> None:
    np.testing.assert_allclose(relative_robustness([0.7, 0.5], 0.6), [0.1, -0.1])


@pytest.mark.parametrize("top", [0.9, 0.953, 0.9999, 1.0])
def test_limits_of_a_logit_axis_stay_inside(top: float) -> None:
    low, high = logit_axis_limits([0.4, 0.7, top])
    assert 0 < low < 0.4
    assert min(top, 0.999) < high < 1
    assert math.isfinite(math.log(high / (1 - high)))


def test_limits_of_one_value_have_a_width() -> None:
    low, high = logit_axis_limits([1.0, 1.0])
    assert low < 0.999 < high < 1
    low, high = logit_axis_limits([0.0])
    assert 0 < low < 0.001 < high


def test_ticks() -> None:
    assert logit_ticks(0.35, 0.61) == [0.4, 0.5, 0.6]
    assert logit_ticks(*logit_axis_limits([0.985, 1.0]))[-1] == 0.999


def test_prediction_diversity_counts_neither_both_right_nor_both_wrong() -> None:
    labels = [0, 1, 2, 3, 4]
    first = [0, 1, 0, 0, 0]  # right, right, wrong, wrong, wrong
    second = [0, 0, 2, 1, 0]  # right, wrong, right, wrong (another class), wrong (the same)
    assert prediction_diversity(first, second, labels) == pytest.approx(2 / 5)
    with pytest.raises(InputError, match="2 and 3 for 2 labels"):
        prediction_diversity([0, 1], [0, 1, 2], [0, 1])


def test_concavity() -> None:
    found = concavity([0, 0.25, 0.5, 1], [0.6, 0.6, 0.75, 0.8])
    assert not found.holds
    assert found.margin == pytest.approx(-0.05)
    assert found.alpha == 0.25
    assert concavity([0, 0.1, 0.3, 1], [0.1, 0.2, 0.4, 1.0 + 0.1 - 0.0]).holds  # a line, rounded


def test_beats_both_wants_every_column_and_no_ties() -> None:
    alphas = [0, 0.25, 0.5, 0.75, 1]
    reference = [0.6, 0.8, 0.82, 0.83, 0.8]
    shift = [0.5, 0.5, 0.55, 0.4, 0.3]
    assert beats_both(alphas, {"reference": reference, "shift": shift}) == [0.5]
    assert beats_both(alphas, {"reference": reference}) == [0.5, 0.75]
    assert beats_both([0, 1], {"reference": [0.1, 0.2]}) == []


def test_wrong_input() -> None:
    with pytest.raises(InputError, match=r"accuracy: 75.2; a fraction in \[0, 1\]"):
        logit([0.5, 75.2])
    with pytest.raises(InputError, match="accuracy: nan"):
        logit(math.nan)
    with pytest.raises(InputError, match=r"eps: 0\.5"):
        logit(0.5, 0.5)
    with pytest.raises(InputError, match="1 reference and 1 shift"):
        fit_baseline([0.5], [0.5])
    with pytest.raises(InputError, match="one reference accuracy"):
        fit_baseline([0.7, 0.7], [0.5, 0.6])
    with pytest.raises(InputError, match="no accuracies"):
        logit_axis_limits([])
    with pytest.raises(InputError, match="alpha = 1; both ends"):
        concavity([0, 0.5], [0.5, 0.5])
    with pytest.raises(InputError, match="3 accuracies at 2 alphas"):
        beats_both([0, 1], {"a": [1, 2, 3]})
    with pytest.raises(InputError, match="no column"):
        beats_both([0, 1], {})
    assert Baseline(1.0, 0.0).eps == 1e-3
