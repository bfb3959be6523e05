"""Rows of shift sets: evaluated beside the report split, never used for selection."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from actors.data.images.shifted_pixels import VERSION
from actors.data.protocol import Inputs
from actors.data.task import Task, TaskSource, open_task
from actors.data.task_rows import Rows, TaskData
from actors.data.text import corruptions as texts
from actors.experts.unseen_tasks import ADAPT, learners
from actors.files.cache_dir import cache_dir
from actors.files.fingerprint import Fingerprint, fingerprint
from fusion.errors import InputError
from sweeps.spec.shift import ShiftSpec

ROLE = "shift/"
"""Prefix of the role of a shift set's rows."""


def open_shifts(
    shifts: Mapping[str, ShiftSpec], report: str, tasks: Mapping[str, Task]
) -> dict[tuple[str, str], Task]:
    """Open the other data sets of shift sets: (shift, task) -> task; no row is prepared.

    Raises:
            InputError: missing data, or data without rows to report on.
    """
    found = {}
    for name, shift in shifts.items():
        if shift.dataset is None:
            continue
        for task in [shift.task] if shift.task else tasks:
            words = tasks[task].wording
            source = TaskSource(
                f"{task} (shifts.{name})",
                shift.dataset,
                shift.image,
                shift.label,
                classnames=tasks[task].classnames,
                text=words.columns if words else None,
                template=words.template if words else None,
                targets=words.targets if words else None,
                metric=tasks[task].metric,
            )
            found[name, task] = open_task(source, "text" if words else "image")
            split_of(found[name, task], report, name)
    return found


def shift_fingerprint(
    shifts: Mapping[str, ShiftSpec], name: str, others: Mapping[tuple[str, str], Task]
) -> Fingerprint:
    """Fingerprint of a shift set: its settings, the corruption code, and other data's content.

    The rows that are corrupted, and how other ones are prepared, are the sweep's.
    """
    data = {
        task: [other.fingerprint, list(other.classnames)]
        for (each, task), other in others.items()
        if each == name
    }
    version = texts.VERSION if shifts[name].corruption in texts.CORRUPTIONS else VERSION
    return fingerprint("shift-set-1", version, shifts[name].model_dump(mode="json"), data)


def check_corruptions(shifts: Mapping[str, ShiftSpec], inputs: Inputs) -> None:
    """Raise InputError for a corruption that is not defined on what the models read."""
    for name, shift in shifts.items():
        if shift.corruption is not None:
            what = f"shifts.{name}: corruption: {shift.corruption!r}"
            inputs.check_corruption(shift.corruption, what)


def adapted_rows(
    shift: ShiftSpec,
    inputs: Inputs,
    data: Mapping[str, TaskData],
    tasks: Mapping[str, Task],
    roles: Collection[str],
) -> dict[str, TaskData]:
    """Add rows `adapt/<role>` to tasks: those of these roles under a corruption.

    Unseen tasks get none, because no method adapts to them.

    Raises:
        InputError: see `Inputs.corrupted`.
    """
    found = dict(data)
    for task, each in learners(data).items():
        more = {
            f"{ADAPT}{role}": corrupted_rows(each.rows[role], shift, inputs, tasks[task])
            for role in sorted(roles)
        }
        found[task] = replace(each, rows={**each.rows, **more})
    return found


def corrupted_rows(rows: Rows, shift: ShiftSpec, inputs: Inputs, task: Task) -> Rows:
    """A task's rows under the corruption of a shift set.

    Raises:
        InputError: see `Inputs.corrupted`.
    """
    return inputs.corrupted(rows, task, rows.split, shift.as_corruption(), cache_dir())


def split_of(task: Task, report: str, name: str) -> str:
    """The split of another data set to report on: the one of the same name, or its only one."""
    if report in task.splits:
        return report
    if len(task.splits) == 1:
        return next(iter(task.splits))
    raise InputError(
        f"shifts.{name}.dataset: {task.dataset}: no split {report!r}; there:"
        f" {', '.join(task.splits)}"
    )


def shift_rows(
    shifts: Mapping[str, ShiftSpec],
    report: str,
    inputs: Inputs,
    data: Mapping[str, TaskData],
    tasks: Mapping[str, Task],
    others: Mapping[tuple[str, str], Task],
) -> dict[str, dict[str, Rows]]:
    """Prepare the rows of shift sets: task -> shift -> rows.

    Raises:
        InputError: see `Inputs.corrupted` and `Inputs.prepare`.
    """
    root = cache_dir()
    found: dict[str, dict[str, Rows]] = {task: {} for task in data}
    for name, shift in shifts.items():
        for task, each in data.items():
            if shift.corruption is not None and shift.task in (None, task):
                found[task][name] = corrupted_rows(each.rows["report"], shift, inputs, tasks[task])
            elif (name, task) in others:
                other = others[name, task]
                split = split_of(other, report, name)
                files = inputs.prepare({other.name: other}, [(other.name, split)], root)
                found[task][name] = Rows(files[other.name, split])
    return found
