"""Racing: the certain bound never loses the best candidate, the other one hardly ever."""

import math

import numpy as np
import pytest

from fusion.analysis.racing import beaten, ceiling, divergence, improbable

SIZES = {"a": 40, "b": 25, "c": 60}


def candidates(draw, count=8):
    """Task -> bool [count, N]: right rows of candidates that are alike, and of some far worse."""
    skill = draw.choice([0.5, 0.7, 0.75, 0.78], size=(count, 1))
    return {name: draw.random((count, size)) < skill for name, size in SIZES.items()}


def accuracy(rows, at):
    return math.fsum(each[at].mean() for each in rows.values()) / len(rows)


def raced(rows, orders, step, risk=0.0):
    """(accuracy or None of each candidate, rows evaluated): one after the other, by the best so
    far."""
    found, evaluated = [], 0
    for at in range(len(rows["a"])):
        known = [value for value in found if value is not None]
        best = None
        for start in range(0, max(SIZES.values()), step):
            seen = {name: min(start + step, size) for name, size in SIZES.items()}
            right = {name: int(rows[name][at][orders[name][: seen[name]]].sum()) for name in SIZES}
            evaluated += sum(seen.values()) - sum(min(start, size) for size in SIZES.values())
            if known and beaten(right, seen, SIZES, max(known), risk):
                break
        else:
            best = accuracy(rows, at)
        found.append(best)
    return found, evaluated


def orders_of(draw):
    return {name: draw.permutation(size) for name, size in SIZES.items()}


@pytest.mark.parametrize("seed", range(20))
def test_the_best_candidate_is_never_stopped_by_the_certain_bound(seed):
    draw = np.random.default_rng(seed)
    rows = candidates(draw)
    full = [accuracy(rows, at) for at in range(8)]
    found, evaluated = raced(rows, orders_of(draw), 7)
    best = max(full)
    assert [at for at, value in enumerate(found) if value == best] == [
        at for at, value in enumerate(full) if value == best
    ]
    assert all(value in (None, full[at]) for at, value in enumerate(found))
    assert evaluated < 8 * sum(SIZES.values()) or None not in found


def test_the_best_candidate_is_stopped_as_rarely_as_asked():
    draw, lost, less = np.random.default_rng(0), 0, 0
    looks = -(-max(SIZES.values()) // 5)
    for _ in range(300):
        rows, orders = candidates(draw), orders_of(draw)
        found, evaluated = raced(rows, orders, 5, risk=0.1 / looks)
        less += raced(rows, orders, 5)[1] - evaluated
        lost += max(value for value in found if value is not None) < max(
            accuracy(rows, at) for at in range(8)
        )
    assert lost <= 0.1 * 300
    assert less > 0  # and fewer rows are evaluated than with the certain bound


@pytest.mark.parametrize("bar", [0.3, 0.6, 0.9])
def test_the_bound_is_above_the_frequency(bar):
    """Of all orders, in which the running accuracy is as low as seen: samples without replacement
    of strata whose mean is the bar, divided unevenly."""
    draw, size, rows = np.random.default_rng(1), 200, 20
    means = [min(1.0, bar + 0.1), max(0.0, 2 * bar - min(1.0, bar + 0.1))]
    strata = [np.arange(size) < round(size * mean) for mean in means]
    counts = np.array(
        [
            sum(int(draw.permutation(each)[:rows].sum()) for each in strata)
            for _ in range(4000)
        ]
    )  # fmt: skip
    sizes, seen = {"a": size, "b": size}, {"a": rows, "b": rows}
    true = sum(each.mean() for each in strata) / 2
    for low in np.unique(counts):
        right = {"a": int(low) // 2, "b": int(low) - int(low) // 2}
        assert (counts <= low).mean() <= improbable(right, seen, sizes, true) + 0.01


def test_tasks_without_more_rows_are_known_numbers():
    sizes, seen = {"a": 10, "b": 100}, {"a": 10, "b": 20}
    right = {"a": 10, "b": 4}
    alone = improbable({"b": 4}, {"b": 20}, {"b": 100}, 0.6)
    assert improbable(right, seen, sizes, 0.8) == pytest.approx(alone)
    assert alone == pytest.approx(math.exp(-20 * divergence(0.2, 0.6)))


def test_nothing_follows_from_unequal_samples_or_none():
    sizes = {"a": 50, "b": 50}
    assert improbable({"a": 0, "b": 0}, {"a": 10, "b": 20}, sizes, 0.9) == 1.0
    assert improbable({"a": 0, "b": 0}, {"a": 0, "b": 0}, sizes, 0.9) == 1.0
    assert improbable({"a": 9, "b": 9}, {"a": 10, "b": 10}, sizes, 0.9) == 1.0


def test_a_tie_goes_on():
    assert ceiling({"a": 1}, {"a": 2}, {"a": 4}) == 0.75
    assert not beaten({"a": 1}, {"a": 2}, {"a": 4}, 0.75)
    assert beaten({"a": 1}, {"a": 2}, {"a": 4}, 0.76)
