"""Disk and memory of methods that merge by statistics of data."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import torch

from actors.data.task import Place, Splits, Task
from actors.pool.pool import Pool, gram_sizes
from fusion.registry import METHODS, StatisticsBased
from sweeps.planning.learning_needs import TRIED
from sweeps.spec.candidates import planned, random_points
from sweeps.spec.sweep import SweepSpec


@dataclass(frozen=True)
class StatisticsCost:
    """Disk and memory of one method's statistics."""

    disk: int
    """Bytes in the cache, for all its trials."""
    memory: int
    """Bytes in a replica beside its models, while statistics are computed or read."""
    images: int
    """Images whose activations are kept for a backward pass; 0 if there is no backward pass."""


def statistics_costs(spec: SweepSpec, pool: Pool) -> dict[str, StatisticsCost]:
    """Estimate disk and memory of statistics, for each method that merges by some.

    `fisher` stores one float32 model on disk for each expert. While it computes them, a replica
    holds two more models, for any number of images: gradients, and the sum of their squares.
    RegMean stores one Gram matrix for each expert and distinct layer input; a replica holds those
    of one expert while they are computed, and those of all experts for one layer, with sum and
    factor, while it merges. Trials with equal settings share statistics. If not all trials are
    known beforehand, each is counted separately.
    """
    found = {}
    trials = planned(spec)
    for name, entry in spec.methods.items():
        row = METHODS[name]
        if not isinstance(row, StatisticsBased):
            continue
        points = islice(random_points(entry, name, spec.seed), TRIED)
        asked = [row.statistics_request(point) for point in points]
        different = len({repr(each) for each in asked})
        times = trials[name] if different > 1 and len(asked) < trials[name] else different
        if asked[0].kind == "fisher":
            width = getattr(torch, spec.placement.dtype).itemsize
            images = max(each.batch_size for each in asked)
            model = pool.parameters
            found[name] = StatisticsCost(
                times * len(pool.tasks) * 4 * model, (4 + width) * model, images
            )
        else:
            grams = gram_sizes(pool)
            merging = (len(pool.tasks) + 2) * max(grams.values())
            disk = times * len(pool.tasks) * sum(grams.values())
            found[name] = StatisticsCost(disk, max(sum(grams.values()), merging), 0)
    return found


def rows_at(task: Task, place: Place, splits: Splits) -> int:
    """Number of rows of a task in a place; of a carved part to within rounding by class."""
    share = {"all": 1.0, "fit": 1 - splits.val_fraction, "val": splits.val_fraction}
    return round(task.splits[place.split] * share[place.part])
