"""Disk estimates for corrupted and other shifted rows.

Files that are already in the cache are counted too: they are known only when the sweep runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from actors.data.task import Place, Role, assign
from actors.experts.prepare_data import MEASURED, ROLES
from fusion.registry import METHODS
from sweeps.planning.prepared import Prepared
from sweeps.planning.shift_data import split_of
from sweeps.planning.statistics_cost import rows_at
from sweeps.spec.trial_key import adapts


def shifted_images(prepared: Prepared) -> int:
    """Number of shifted images in the cache: shift sets, and images that methods adapt to."""
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
    rows = [METHODS[name] for name in prepared.spec.methods]
    if any(row.fits and adapts(row) for row in rows):
        found.add("fit")
    return found


def rows_in(prepared: Prepared, task: str, role: str) -> int:
    """Rows of a task that are written for a role; of texts the whole split is."""
    unseen = task in prepared.spec.unseen
    spelled = prepared.spec.splits.select_spelled
    opened, splits = prepared.tasks[task], prepared.splits
    roles = MEASURED if unseen else ROLES
    places: Mapping[Role, Place] = assign(opened, splits, select_spelled=spelled, roles=roles)
    place = places[cast(Role, role)]
    if prepared.inputs.kind == "text":
        return opened.splits[place.split]
    return rows_at(opened, place, splits)


def shifted_bytes(prepared: Prepared) -> int:
    """Bytes of disk of shifted images."""
    return shifted_images(prepared) * prepared.inputs.row.nbytes
