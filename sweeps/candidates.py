"""The trials that a method's entry means, without Tune: grids, random samples, and their number."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from typing import Any

from sweeps.canonical import canonical, derive_seed
from sweeps.entry import MethodSpec
from sweeps.space import Choice, fill
from sweeps.spec import SweepSpec


def grid_points(entry: MethodSpec) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Every combination of grid values: (path, value) pairs, and the parameters with them in.

    Sampled spaces stay in the parameters. The pairs are what to seed a point's draws from: they
    stay the same when something else in the entry changes.
    """
    grids = entry.grids
    for values in itertools.product(*(grid.values for grid in grids.values())):
        chosen = dict(zip(grids, values, strict=True))
        yield list(chosen.items()), fill(entry.params, chosen)


def random_points(entry: MethodSpec, method: str, seed: int) -> Iterator[dict[str, Any]]:
    """All trials of a method that is searched at random, or not at all.

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


def planned(spec: SweepSpec) -> dict[str, int]:
    """How many trials each method has at most; samples that repeat one are not run again."""
    return {method: planned_trials(entry) for method, entry in spec.methods.items()}


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
    """How many of the values differ.

    >>> different([1, 1.0, True, [2]])
    3
    """
    return len(set(map(canonical, values)))
