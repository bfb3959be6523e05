"""What statistics of data, and images under shift, take: disk, and memory while they are gathered.

Files that are in the cache already count too: which those are is known when the sweep runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, cast

import torch

from actors.artifacts.statistics_file import gram_sizes
from actors.data.task import Place, Role, Splits, Task, assign
from actors.experts.prepare_data import MEASURED, ROLES
from actors.pool.pool import Pool
from fusion.registry import METHODS, Informed
from sweeps.planning.learning_needs import REHEARSED
from sweeps.planning.shift_data import split_of
from sweeps.spec.candidates import planned, random_points
from sweeps.spec.sweep import SweepSpec

if TYPE_CHECKING:
    from sweeps.planning.prepare import Prepared


@dataclass(frozen=True)
class Taken:
    """What one method's statistics take."""

    disk: int
    """Bytes in the cache, of all its trials."""
    memory: int
    """Bytes in a replica beside its models, while statistics are gathered or read."""
    images: int
    """Whose activations wait for a backward pass; 0: there is none."""


def taken(spec: SweepSpec, pool: Pool) -> dict[str, Taken]:
    """Method -> what its statistics take; of methods that merge by some.

    `fisher` keeps a model of float32 an expert on disk. While it gathers, a replica holds two
    models beside the one that runs, whatever the number of images: gradients, and the sum of their
    squares. RegMean keeps a Gram matrix an expert and distinct input of a layer; it holds those of
    one expert while it gathers, and those of all experts for one layer, with sum and factor, while
    it merges. Trials share statistics where they ask for the same. Where not every trial is known
    beforehand, each counts by itself.
    """
    found = {}
    trials = planned(spec)
    for name, entry in spec.methods.items():
        row = METHODS[name]
        if not isinstance(row, Informed):
            continue
        asked = [row.asked(p) for p in islice(random_points(entry, name, spec.seed), REHEARSED)]
        different = len({repr(each) for each in asked})
        times = trials[name] if different > 1 and len(asked) < trials[name] else different
        if asked[0].kind == "fisher":
            width = getattr(torch, spec.placement.dtype).itemsize
            images = max(each.batch_size for each in asked)
            model = pool.parameters
            found[name] = Taken(times * len(pool.tasks) * 4 * model, (4 + width) * model, images)
        else:
            grams = gram_sizes(pool)
            merging = (len(pool.tasks) + 2) * max(grams.values())
            disk = times * len(pool.tasks) * sum(grams.values())
            found[name] = Taken(disk, max(sum(grams.values()), merging), 0)
    return found


def rows_at(task: Task, place: Place, splits: Splits) -> int:
    """Rows of a task in a place; of a carved part to within rounding by class."""
    share = {"all": 1.0, "fit": 1 - splits.val_fraction, "val": splits.val_fraction}
    return round(task.splits[place.split] * share[place.part])


def shifted_images(prepared: Prepared) -> int:
    """Images under shift that the cache keeps a copy of: shift sets, and what is adapted to."""
    spec, tasks = prepared.spec, prepared.tasks
    copies: dict[tuple[object, ...], int] = {}
    key: tuple[object, ...]
    for name, shift in spec.shifts.items():
        for task in tasks:
            if shift.corruption is not None and shift.task in (None, task):
                key = (task, "report", shift.corruption, shift.severity, shift.seed)
                copies[key] = rows_in(prepared, task, "report")
            elif (name, task) in prepared.others:
                other = prepared.others[name, task]
                split = split_of(other, spec.splits.report, name)
                copies[other.fingerprint, split] = other.splits[split]
    if spec.adapt_on_shift is not None:
        shift = spec.shifts[spec.adapt_on_shift]
        for task in spec.seen:
            for role in adapted_roles(prepared):
                key = (task, role, shift.corruption, shift.severity, shift.seed)
                copies[key] = rows_in(prepared, task, role)
    return sum(copies.values())


def adapted_roles(prepared: Prepared) -> set[str]:
    """Roles whose unlabelled images some method adapts to, or takes statistics of."""
    found: set[str] = set(prepared.needs.adapts_on)
    if any(isinstance(METHODS[name], Informed) for name in prepared.spec.methods):
        found.add("fit")
    return found


def rows_in(prepared: Prepared, task: str, role: str) -> int:
    """Rows of a task in a role."""
    unseen = task in prepared.spec.unseen
    spelled = prepared.spec.splits.select_spelled
    opened, splits = prepared.tasks[task], prepared.splits
    roles = MEASURED if unseen else ROLES
    places: Mapping[Role, Place] = assign(opened, splits, select_spelled=spelled, roles=roles)
    return rows_at(opened, places[cast(Role, role)], splits)


def shifted_bytes(prepared: Prepared) -> int:
    """Disk that copies of images under shift take."""
    height, width = prepared.preprocess.shape
    return shifted_images(prepared) * 3 * height * width
