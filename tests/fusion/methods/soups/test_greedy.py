"""Greedy selection: recorded tables, every number of candidates at once, bad pools, lost ones."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fusion.errors import InputError
from fusion.methods.soups.greedy import (
    Greedy,
    Subset,
    advance,
    begin,
    candidates,
    greedy,
    run,
)
from fusion.methods.soups.ordering import order_of, pruned

Evaluate = Callable[[Sequence[Subset]], list[float]]
NAN = float("nan")


def table(scores: dict[Subset, float]) -> Evaluate:
    """Scores from a table, by what is in the subset; what is not in it must not be asked."""
    return lambda asked: [scores[tuple(sorted(subset))] for subset in asked]


def outcomes(state: Greedy) -> list[tuple[Subset, str]]:
    return [(step.candidate, step.outcome) for step in state.steps]


SINGLES = [0.80, 0.70, 0.75, 0.80, 0.60]
RECORDED = {
    (0, 3): 0.80,  # a tie
    (0, 2, 3): 0.85,
    (0, 2): 0.82,
    (0, 1, 2, 3): 0.84,
    (0, 1, 2): 0.82,  # a tie again
    (0, 2, 3, 4): 0.86,
    (0, 2, 4): 0.81,
    (0, 1, 2, 4): 0.99,
}


def test_recorded_table_with_ge() -> None:
    found = greedy(order_of(SINGLES), SINGLES, table(RECORDED))
    assert (found.subset, found.best) == ((0, 3, 2, 4), 0.86)
    assert outcomes(found) == [
        ((0, 3), "accepted"),
        ((0, 3, 2), "accepted"),
        ((0, 3, 2, 1), "rejected"),
        ((0, 3, 2, 4), "accepted"),
    ]
    assert [step.best for step in found.steps] == [0.80, 0.80, 0.85, 0.85]
    assert (found.rounds, found.evaluations) == (4, 4)  # the first's own score is not asked


def test_recorded_table_with_gt() -> None:
    found = greedy(order_of(SINGLES), SINGLES, table(RECORDED), tie="gt")
    assert (found.subset, found.best) == ((0, 2), 0.82)
    assert [step.outcome for step in found.steps] == [
        "rejected", "accepted", "rejected", "rejected",
    ]  # fmt: skip


def test_least_gain() -> None:
    found = greedy(order_of(SINGLES), SINGLES, table(RECORDED), min_delta=0.015625)
    assert found.subset == (0, 2)  # 0.82 ≥ 0.80 + 1/64; the tie is not enough


def test_copies_are_not_asked() -> None:
    hashes = ["a", "b", "c", "a", "b"]
    table_ = table({(0, 2): 0.82, (0, 1, 2): 0.82})
    found = greedy(order_of(SINGLES), SINGLES, table_, hashes=hashes)
    assert outcomes(found) == [
        ((0, 3), "duplicate"),
        ((0, 2), "accepted"),
        ((0, 2, 1), "accepted"),
        ((0, 2, 1, 4), "duplicate"),
    ]
    assert [step.note for step in found.steps] == ["a copy of 0", "", "", "a copy of 1"]
    assert [step.twin for step in found.steps] == [0, None, None, 1]
    assert found.evaluations == 2


def test_with_gt_a_copy_is_asked_where_it_would_change_the_model() -> None:
    scores = {(0, 2): 0.82, (0, 2, 3): 0.83}
    found = greedy([0, 2, 3], SINGLES, table(scores), tie="gt", hashes=["a", "b", "c", "a", "e"])
    assert found.subset == (0, 2, 3)
    found = greedy([0, 3], SINGLES, table({}), tie="gt", hashes=["a", "b", "c", "a", "e"])
    assert outcomes(found) == [((0, 3), "duplicate")]


def test_all_ingredients_equal() -> None:
    found = greedy([0, 1, 2], [0.5] * 3, table({}), hashes=["a"] * 3, p=4)
    assert (found.subset, found.best, found.evaluations) == ((0,), 0.5, 0)
    assert [step.outcome for step in found.steps] == ["duplicate", "duplicate"]


def test_one_ingredient() -> None:
    state = begin([0], [0.5])
    assert candidates(state) == []
    assert (state.subset, state.best, state.steps) == ((0,), 0.5, ())


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_a_score_that_is_no_number_rejects_and_is_recorded(bad: float) -> None:
    scores = {(0, 1): bad, (0, 2): 0.9}
    found = greedy([0, 1, 2], [0.8, 0.7, 0.6], table(scores), p=2)
    assert found.subset == (0, 2)
    assert found.failed == (1,)
    assert (found.steps[0].outcome, found.steps[0].score) == ("failed", None)
    assert found.steps[0].note == f"score {bad}"


def test_an_ingredient_without_a_score_of_its_own_is_left_out() -> None:
    scores = [NAN, 0.7, 0.8]
    found = greedy(order_of(scores), scores, table({(1, 2): 0.9}))
    assert found.subset == (2, 1)
    assert found.failed == (0,)
    with pytest.raises(InputError, match="no ingredient has a finite score; at least one needed"):
        begin([0, 1], [NAN, math.inf])


def random_scores(seed: int) -> Callable[[Subset], float]:
    """A score of every multiset, coarse enough for ties, with a NaN now and then."""

    def score(subset: Subset) -> float:
        drawn = random.Random(f"{seed} {sorted(subset)}")
        if drawn.random() < 0.05:
            return NAN
        return round(0.5 + 0.02 * len(subset) ** 0.5 + drawn.uniform(-0.1, 0.03), 2)

    return score


RULES: list[dict[str, Any]] = [
    {},
    {"tie": "gt"},
    {"min_delta": 0.01},
    {"replacement": True},
    {"replacement": True, "tie": "gt", "passes": 3},
    {"passes": 2},
    {"start": (3, 5)},
    {"hashes": list("abcdeafghb")},
    {"hashes": list("abcdeafghb"), "replacement": True},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_any_number_at_once_gives_the_same_steps(rule: dict[str, Any]) -> None:
    for seed in range(12):
        score = random_scores(seed)
        singles = [0.5 + i % 4 / 100 for i in range(10)]
        order = order_of(singles, "random", seed=seed)

        def evaluate(asked: Sequence[Subset], score: Any = score) -> list[float]:
            return [0.55 if subset == (3, 5) else score(subset) for subset in asked]

        one = greedy(order, singles, evaluate, **rule)
        for p in (2, 4, 8, 100):
            many = greedy(order, singles, evaluate, p, **rule)
            assert (many.subset, many.best, many.steps) == (one.subset, one.best, one.steps)
            assert many.rounds <= one.rounds
            assert many.evaluations >= one.evaluations


@pytest.mark.parametrize(
    ("accepted", "p", "rounds", "evaluations"),
    [(4, 1, 71, 71), (4, 4, 19.7, 77), (4, 8, 11.2, 86), (10, 8, 14.7, 112)],
)
def test_rounds_of_speculation(accepted: int, p: int, rounds: float, evaluations: float) -> None:
    found = []
    for seed in range(60):
        taken = set(random.Random(seed).sample(range(1, 72), accepted))

        def evaluate(asked: Sequence[Subset], taken: set[int] = taken) -> list[float]:
            return [float(len(subset)) if subset[-1] in taken else 0.0 for subset in asked]

        state = greedy(range(72), [1.0] * 72, evaluate, p)
        assert set(state.subset) == taken | {0}
        found.append((state.rounds, state.evaluations))
    means = np.mean(found, axis=0)
    assert means[0] == pytest.approx(rounds, abs=0.35)
    assert means[1] == pytest.approx(evaluations, rel=0.03)


def test_with_replacement_until_a_whole_pass_takes_nothing() -> None:
    scores = {
        (0, 1): 0.8, (0, 2): 0.7, (0, 0, 1): 0.9, (0, 0, 1, 1): 0.9, (0, 0, 1, 2): 0.6,
        (0, 0, 0, 1): 0.85,
    }  # fmt: skip
    found = greedy([0, 1, 2], [0.8, 0.8, 0.5], table({**scores, (0, 1, 2): 0.7}), replacement=True)
    # 1 ties and is new: taken. 0 again is better. 1 again only ties: not taken.
    assert found.subset == (0, 1, 0)
    assert [step.candidate[-1] for step in found.steps] == [1, 2, 0, 1, 2, 0]
    assert found.steps[-1].outcome == "rejected"


def test_replacement_ends_where_every_step_gains() -> None:
    def evaluate(asked: Sequence[Subset]) -> list[float]:
        return [1 - 1 / len(subset) for subset in asked]

    found = greedy([0, 1], [0.0, 0.0], evaluate, replacement=True, passes=3)
    assert len(found.steps) == 5  # three passes of two, the first of which was known


def test_a_start_of_several_is_scored_first() -> None:
    scores = {(1, 2): 0.7, (0, 1, 2): 0.6, (1, 2, 3): 0.75}
    state = begin([0, 1, 2, 3], [0.8, 0.5, 0.5, 0.5], start=(1, 2))
    assert candidates(state, 9) == [(1, 2), (1, 2, 0), (1, 2, 3)]
    found = run(state, table(scores), 2)
    assert (found.subset, found.best) == ((1, 2, 3), 0.75)
    assert outcomes(found)[0] == ((1, 2), "start")
    known = begin([0, 1, 2, 3], [0.8, 0.5, 0.5, 0.5], start=(1, 2), start_score=0.7)
    assert run(known, table(scores)).subset == (1, 2, 3)
    assert candidates(begin([0, 1], [0.8, 0.5], start=(1,))) == [(1, 0)]
    with pytest.raises(InputError, match=re.escape("start: [1, 2] scores nan; a finite score")):
        advance(state, [NAN])


def test_orders() -> None:
    scores = [0.7, 0.9, NAN, 0.9, 0.8]
    assert order_of(scores) == [1, 3, 4, 0, 2]
    assert order_of(scores, names="abcde") == [1, 3, 4, 0, 2]  # equal ones by name
    assert order_of(scores, names="edcba") == [3, 1, 4, 0, 2]
    assert order_of(scores, "given", given=[4, 0]) == [4, 0]
    drawn = order_of(scores, "random", seed=1)
    assert sorted(drawn) == list(range(5))
    assert drawn == order_of(scores, "random", seed=1)
    assert len({tuple(order_of(scores, "random", seed=s)) for s in range(20)}) > 10
    angles = np.full((5, 5), 99.0)
    angles[1] = [30, 0, 80, 50, NAN]  # the row of the best
    assert order_of(scores, "angle", angles=angles) == [1, 3, 0, 4, 2]
    angles[1] = [50, 0, 80, 50, 50]  # equal angles: by score
    assert order_of(scores, "angle", angles=angles) == [1, 3, 4, 0, 2]


def test_pruned_pool() -> None:
    assert pruned([0.5, 1.0, 0.75, NAN, 0.749], 0.25) == [1, 2]
    assert pruned([0.5, 1.0, 1.0], 0.0) == [1, 2]
    assert pruned([], 0.1) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: begin([0, 2], [0.5, 0.5]), "order: ingredient 2; 0 to 1 allowed"),
        (lambda: begin([0, 0], [0.5, 0.5]), "order: ingredient 0 is there twice"),
        (lambda: begin([0], [0.5], start=[3]), "start: ingredient 3; 0 to 0 allowed"),
        (lambda: begin([0], [0.5], min_delta=-1), "min_delta: -1; a finite number >= 0 needed"),
        (lambda: begin([0], [0.5], passes=0), "passes: 0; an integer >= 1 needed"),
        (lambda: begin([0, 1], [0.5] * 2, hashes=["a"]), "hashes: 1 given; one for each of 2"),
        (lambda: candidates(begin([0], [0.5]), 0), "p: 0; an integer >= 1 needed"),
        (lambda: advance(begin([0], [0.5]), [0.5]), "scores: 1 given; 1 to 0 candidates were"),
        (lambda: advance(begin([0, 1], [0.5] * 2), []), "scores: 0 given; 1 to 1 candidates"),
        (lambda: order_of([0.5], "given"), "given: not given; the order 'given' needs a list"),
        (lambda: order_of([0.5], "angle"), "angles: not given; the order 'angle' needs those"),
        (lambda: order_of([0.5], "angle", angles=[1.0]), "angles: shape [1]; [1, 1]"),
        (lambda: pruned([0.5], -0.1), "delta: -0.1; a number >= 0 needed"),
    ],
)
def test_wrong_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        call()
