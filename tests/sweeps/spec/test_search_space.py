"""Search spaces: reading, drawing, walking and filling."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from sweeps.spec.errors import Fault
from sweeps.spec.search_space import (
    Choice,
    Grid,
    LogUniform,
    Uniform,
    fill,
    parse,
    spaces,
    to_plain,
)
from sweeps.spec.trial_key import canonical, derive_seed, trial_key

NESTED = {
    "weights": {"b": {"uniform": [0, 1]}, "a": [0.5, {"choice": ["x", None]}]},
    "scale": {"grid": [1, 2]},
    "mode": "mean",
}


def test_spaces_are_read_at_any_depth_and_written_back() -> None:
    parsed = parse(NESTED)
    assert parsed == {
        "weights": {"b": Uniform(0.0, 1.0), "a": [0.5, Choice(("x", None))]},
        "scale": Grid((1, 2)),
        "mode": "mean",
    }
    assert to_plain(parsed) == NESTED
    assert parse(parsed) == parsed


def test_paths_are_in_the_order_of_names() -> None:
    paths = [("scale",), ("weights", "a", 1), ("weights", "b")]
    assert [path for path, _ in spaces(parse(NESTED))] == paths
    backwards = {key: NESTED[key] for key in reversed(NESTED)}
    assert [path for path, _ in spaces(parse(backwards))] == paths


def test_filling_replaces_what_is_chosen_and_nothing_else() -> None:
    parsed = parse(NESTED)
    filled = fill(parsed, {("weights", "a", 1): "x", ("scale",): 2})
    assert filled == {
        "weights": {"b": Uniform(0.0, 1.0), "a": [0.5, "x"]}, "scale": 2, "mode": "mean",
    }  # fmt: skip
    assert parsed == parse(NESTED)
    assert fill(parsed, {("scale",): None})["scale"] is None


@pytest.mark.parametrize("space", [Uniform(-2, 3), LogUniform(1e-6, 1e-3), LogUniform(2, 2.0001)])
def test_samples_lie_between_the_ends_and_fill_the_space(space: Uniform | LogUniform) -> None:
    rng = random.Random(0)
    drawn = [space.sample(rng) for _ in range(4000)]
    assert all(space.low <= value <= space.high for value in drawn)
    transform = math.log if isinstance(space, LogUniform) else float
    low, high = transform(space.low), transform(space.high)
    places = sorted((transform(value) - low) / (high - low) for value in drawn)
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is the 0.1 % bound.
    gap = max(abs(place - at / len(places)) for at, place in enumerate(places))
    assert gap < 1.95 / math.sqrt(len(places))


def test_choices_are_equally_likely_and_each_draw_takes_one_number() -> None:
    rng = random.Random(1)
    drawn = [Choice(("a", "b", "c")).sample(rng) for _ in range(3000)]
    assert all(900 < drawn.count(value) < 1100 for value in "abc")
    one, other = random.Random(5), random.Random(5)
    Choice((1, 2)).sample(one)
    Uniform(0, 1).sample(other)
    assert one.random() == other.random()


def test_samples_are_rounded_but_never_past_the_ends() -> None:
    assert Uniform(0, 1).settle(0.12345678949) == 0.123456789
    low = 0.123456789123
    assert Uniform(low, 1).settle(low) == low
    assert Uniform(0, low).settle(low) == 0.123456789


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Uniform(1, 1), "(whole file): {'uniform': [1, 1]}: uniform: [low, high] with low"
         " below high"),
        (lambda: LogUniform(-1, 1), "(whole file): {'loguniform': [-1, 1]}: loguniform: both ends"
         " above 0"),
        (lambda: Grid(()), "(whole file): {'grid': []}: grid: at least one value"),
        (lambda: parse({"a": {"choice": "abc"}}), "a: {'choice': 'abc'}: choice: a list"),
        (lambda: parse({"a": [{"uniform": [0, True]}]}),
         "a.0: {'uniform': [0, True]}: uniform: [low, high], two finite numbers"),
        (lambda: parse({"a": {"grid": [float("inf")]}}), "a.grid.0: inf: a finite number"),
        (lambda: parse({"a": {1, 2}}), "a: {1, 2}: a number, a text, true, false, null, a list or"
         " a mapping"),
    ],
)  # fmt: skip
def test_what_is_no_space(make: Any, line: str) -> None:
    with pytest.raises(Fault) as caught:
        make()
    assert str(caught.value) == line


def test_keys_stand_for_what_is_run() -> None:
    key = trial_key("ties", {"density": 0.3, "scale": 1}, "c")
    assert len(key) == 16
    assert int(key, 16) >= 0
    same: list[dict[str, Any]] = [
        {"scale": 1.0, "density": 0.3},
        {"density": 0.3},  # scale is 1 by default
        {"density": 0.3, "merge": "mean"},
    ]
    assert {trial_key("ties", params, "c") for params in same} == {key}
    others = [
        trial_key("ties", {"density": 0.3}, "d"),
        trial_key("ties", {"density": 0.3000001}, "c"),
        trial_key("ties", {}, "c"),
        trial_key("task_arithmetic", {"scale": 1}, "c"),
        trial_key("pretrained", {}, "c"),
        trial_key("experts", {}, "c"),
    ]
    assert len({key, *others}) == len(others) + 1


def test_keys_and_seeds_are_what_they_were() -> None:
    """Other values would orphan every ledger there is."""
    assert trial_key("pretrained", {"a": [1, {"b": True}]}, "c") == "06d7775d5d44795f"
    assert derive_seed(0, "ties", [("a", 0)]) == 3721617762


def test_seeds_differ_by_seed_and_purpose() -> None:
    seeds = {derive_seed(seed, purpose) for seed in range(50) for purpose in ("a", "b")}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_canonical_text() -> None:
    assert canonical({"b": (1, 1.0, True, None, "é"), "a": {}}) == canonical(
        {"a": {}, "b": [1.0, 1, True, None, "é"]}
    )
    assert canonical(2**60) != canonical(2**60 + 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))
