"""Shift sets of an analysis: rows of the select side only, never rows that are reported on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from actors.data.task import Place, Splits, Task, assign
from actors.data.task_rows import Rows, TaskData
from actors.experts.prepare_data import rows as rows_of
from actors.files.cache_dir import cache_dir
from actors.files.fingerprint import Fingerprint
from fusion.errors import InputError
from sweeps.analysis.core.evaluated_points import PROBE, Points, some
from sweeps.planning.prepared import Prepared
from sweeps.planning.shift_data import ROLE, corrupted_rows, shift_fingerprint, split_of
from sweeps.spec.reference_methods import is_soup
from sweeps.spec.trial_key import digest

OWN = "@"
"""Before the task, in the name of a role whose rows are of that task alone."""


@dataclass(frozen=True)
class ShiftContext:
    """Rows on which WiSE-FT's path to one expert is evaluated: its tasks, clean and under shift."""

    tasks: tuple[str, ...]
    clean: Points
    shifts: Mapping[str, Points]
    """Shift set -> points on its rows, of those of the tasks that it is of."""
    expert: str | None = None
    """Whose task it is; None: of all ingredients."""


Route: TypeAlias = tuple[ShiftContext, str]
"""A context, and the expert at the end of the path that is walked in it."""


@dataclass(frozen=True)
class Shifted:
    """The shift sets of a sweep, as an analysis uses them."""

    key: str = ""
    """Hash of what the sets are."""
    about: Mapping[str, str] = field(default_factory=dict)
    """Set -> which rows it is, in words."""
    left_out: Sequence[str] = ()
    """Of sets that are not measured: why."""
    contexts: Sequence[ShiftContext] = ()


def described(prepared: Prepared) -> Shifted:
    """Describe a sweep's shift sets; no row is prepared."""
    kind = prepared.inputs.kind
    about: dict[str, str] = {}
    left_out = []
    for name, shift in prepared.spec.shifts.items():
        if shift.corruption is not None:
            about[name] = f"the same {kind}s under {shift.corruption}, severity {shift.severity}"
            continue
        (other,) = [task for (each, _), task in prepared.others.items() if each == name]
        place = place_of(other, prepared.splits, prepared.spec.splits.select_spelled, name)
        if place is None:
            left_out.append(
                f"Shift set {name!r} is left out: {shift.dataset} has no rows but those that are"
                " reported on, and an analysis never looks at them."
            )
        else:
            part = "a part of " if place.part == "val" else ""
            about[name] = f"{kind}s of {shift.dataset}, {part}split {place.split}"
    key = digest({name: mark(prepared, name) for name in about}) if about else ""
    return Shifted(key, about, tuple(left_out))


def place_of(other: Task, splits: Splits, spelled: bool, name: str) -> Place | None:
    """The select rows of a shift set's own data set, by the rules of tasks; None: it has none.

    Of a data set with one split alone all rows are reported on.
    """
    report = split_of(other, splits.report, name)
    try:
        place = assign(
            other, replace(splits, fit=splits.select, report=report), select_spelled=spelled
        )["select"]
    except InputError:
        return None
    wished = spelled and splits.select == splits.report
    return None if place.split == report and not wished else place


def mark(prepared: Prepared, name: str) -> Fingerprint:
    """Fingerprint of a shift set; tasks, splits and seed are in the context."""
    return shift_fingerprint(prepared.spec.shifts, name, prepared.others)


def with_shift_probes(
    data: Mapping[str, TaskData], prepared: Prepared, rows: int
) -> dict[str, TaskData]:
    """Add one role for each shift set to tasks; with experts of different tasks, also one for each
    task alone.

    A corruption is of the probe's own rows; of another data set at most `rows` are drawn.

    Args:
        data: tasks that have their probe.
        prepared: whose shift sets.
        rows: of a task at most; 0: all.

    Raises:
        InputError: see `Inputs.corrupted` and `Inputs.prepare`.
    """
    sets, soup = described(prepared).about, is_soup(prepared.spec)
    found = {}
    for task, each in data.items():
        more = {
            f"{ROLE}{name}": made
            for name in sets
            if (made := shifted_rows(prepared, each, name, rows)) is not None
        }
        if more and not soup:
            clean = {PROBE: each.rows[PROBE]}
            more |= {f"{role}{OWN}{task}": there for role, there in {**clean, **more}.items()}
        found[task] = replace(each, rows={**each.rows, **more})
    return found


def shifted_rows(prepared: Prepared, task: TaskData, name: str, rows: int) -> Rows | None:
    """A task's rows of a shift set; None if the set is of other tasks."""
    shift = prepared.spec.shifts[name]
    if shift.corruption is not None:
        if shift.task not in (None, task.name):
            return None
        probe = task.rows[PROBE]
        return corrupted_rows(probe, shift, prepared.inputs, prepared.tasks[task.name])
    other = prepared.others.get((name, task.name))
    if other is None:
        return None
    place = place_of(other, prepared.splits, prepared.spec.splits.select_spelled, name)
    if place is None:
        return None
    inputs = prepared.inputs
    files = inputs.prepare({other.name: other}, [(other.name, place.split)], cache_dir())
    there = rows_of(files[other.name, place.split], place.part, prepared.splits, inputs)
    return some(there, rows, prepared.spec.seed, other.name)


def shift_contexts(probe: Points, prepared: Prepared, data: Mapping[str, TaskData]) -> Shifted:
    """The shift sets, with points on their rows.

    Of ingredients there is one context, with all tasks; of experts one a task, whose points are
    measured on that task alone.

    Args:
        probe: points on the clean probe; the others are kept in files beside its own.
        prepared: whose shift sets.
        data: of `with_shift_probes`.
    """
    sets = described(prepared)
    contexts = []
    own = [None] if is_soup(prepared.spec) else [task for task in data if task in probe.names]
    for expert in own:
        tail = "" if expert is None else f"{OWN}{expert}"
        tasks = tuple(data) if expert is None else (expert,)
        shifts = {
            name: beside(probe, f"{ROLE}{name}{tail}", f"-{mark(prepared, name)[:16]}{tail}")
            for name in sets.about
            if any(f"{ROLE}{name}" in data[task].rows for task in tasks)
        }
        if shifts:
            clean = beside(probe, f"{PROBE}{tail}", tail) if tail else probe
            contexts.append(ShiftContext(tasks, clean, shifts, expert))
    return replace(sets, contexts=tuple(contexts))


def beside(points: Points, role: str, tail: str) -> Points:
    """Points on the rows of another role, kept in a file beside the given ones."""
    file = points.file.with_name(f"{points.file.stem}{tail}.json")
    return Points(points.experts, points.names, role, file, points.progress)
