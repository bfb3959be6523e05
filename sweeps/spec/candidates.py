"""Candidates of a method's entry: grid points and random samples, and how many there are."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from actors.files.fingerprint import Fingerprint
from sweeps.spec.method import MethodSpec
from sweeps.spec.reference_methods import references
from sweeps.spec.search_space import Choice, fill
from sweeps.spec.sweep import SweepSpec
from sweeps.spec.trial_key import Context, canonical, derive_seed, trial_key


def grid_points(entry: MethodSpec) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """All combinations of grid values: the (path, value) pairs of each, and the parameters with
    them.

    Sampled spaces stay in the parameters. The pairs are what to seed a point's draws from: they
    stay the same when something else in the entry changes.
    """
    grids = entry.grids
    for values in itertools.product(*(grid.values for grid in grids.values())):
        chosen = dict(zip(grids, values, strict=True))
        yield list(chosen.items()), fill(entry.params, chosen)


def random_points(entry: MethodSpec, method: str, seed: int) -> Iterator[dict[str, Any]]:
    """All trials of a method whose search is random, or that has nothing to search.

    Each space of each grid point draws from a generator of its own, so that more trials only add
    trials, and a changed space leaves the draws of the others alone.
    """
    sampled = entry.sampled
    for point, params in grid_points(entry):
        draws = {
            path: random.Random(derive_seed(seed, "random", method, point, path))
            for path in sampled
        }
        for _ in range(entry.trials or 1):
            yield fill(params, {path: s.sample(draws[path]) for path, s in sampled.items()})


def raced_points(entry: MethodSpec, method: str, seed: int) -> list[dict[str, Any]]:
    """The trials of `random_points`, grids from coarse to fine.

    A race is short where a good candidate comes early. Where a numeric grid has one maximum, its
    middle values are good guesses; then those that halve the intervals. Values that are no numbers
    stay in their order.
    """
    halved = {path: halvings(grid.values) for path, grid in entry.grids.items()}
    levels = [
        sum(halved[path].get(value, 0) for path, value in point if is_number(value))
        for point, _ in grid_points(entry)
        for _ in range(entry.trials or 1)
    ]
    points = list(random_points(entry, method, seed))
    return [points[at] for at in sorted(range(len(points)), key=lambda at: levels[at])]


def halvings(values: Iterable[Any]) -> dict[float, int]:
    """Number -> how often intervals are halved until it is a middle.

    >>> halvings([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    {0.4: 0, 0.2: 1, 0.6: 1, 0.1: 2, 0.3: 2, 0.5: 2, 0.7: 2}
    """
    found: dict[float, int] = {}
    parts = [sorted({value for value in values if is_number(value)})]
    for level in itertools.count():
        if not any(parts):
            return found
        middles = [(part, len(part) // 2) for part in parts if part]
        found |= {part[at]: level for part, at in middles}
        parts = [half for part, at in middles for half in (part[:at], part[at + 1 :])]
    raise AssertionError("unreachable")


def is_number(value: Any) -> bool:
    """Whether a value is a number, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def planned(spec: SweepSpec) -> dict[str, int]:
    """Method -> the most trials it can have; samples that repeat a trial are not run again."""
    return {method: planned_trials(entry) for method, entry in spec.methods.items()}


def trial_counts(
    spec: SweepSpec, context: Fingerprint | Context, done: Mapping[str, str]
) -> tuple[int, int]:
    """(finished, all) trials of a sweep; references count as trials.

    Trials that an extended spec no longer means are in neither. Which trials TPE and CMA-ES suggest
    is not known beforehand: of those methods any finished trials count, up to their number.

    Args:
        spec: with all methods that the comparison will have.
        context: see `trial_key`.
        done: trial key -> method of what has finished.
    """
    others = references(spec)
    finished = sum(trial_key(name, {}, context) in done for name in others)
    total = len(others)
    for method, entry in spec.methods.items():
        if entry.searcher == "random" or not entry.sampled:
            points = random_points(entry, method, spec.seed)
            keys = {trial_key(method, params, context) for params in points}
            finished += sum(key in done for key in keys)
            total += len(keys)
        else:
            most = planned_trials(entry)
            finished += min(most, sum(each == method for each in done.values()))
            total += most
    return finished, total


def planned_trials(entry: MethodSpec) -> int:
    """At most this many trials: combinations of the grids times samples."""
    points = math.prod(different(grid.values) for grid in entry.grids.values())
    sampled = entry.sampled.values()
    choices = [space for space in sampled if isinstance(space, Choice)]
    trials = entry.trials or 1
    if len(choices) == len(sampled):
        trials = min(trials, math.prod(different(choice.values) for choice in choices))
    return points * trials


def different(values: Iterable[Any]) -> int:
    """Number of different values.

    >>> different([1, 1.0, True, [2]])
    3
    """
    return len(set(map(canonical, values)))
