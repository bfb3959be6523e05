"""Add rows to a sweep's tasks: shift sets, and corrupted rows that methods adapt to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from actors.data.task_rows import TaskData
from actors.experts.unseen_tasks import ADAPT
from actors.files.cache_dir import cache_dir
from actors.gate_features.extractor import Extractor
from actors.gate_features.feature_cache import prepare_features
from actors.gate_features.shifted_features import corrupted_features
from sweeps.planning.estimates import adapted_roles
from sweeps.planning.prepared import Prepared
from sweeps.planning.shift_data import ROLE, adapted_rows, shift_rows, split_of


def extended(prepared: Prepared, data: Mapping[str, TaskData]) -> Mapping[str, TaskData]:
    """Add rows `shift/<set>` and `adapt/<role>` to tasks, with extractors' features of them.

    Raises:
        InputError: see `corrupted`, `prepare` and `prepare_features`.
    """
    spec = prepared.spec
    if not spec.shifts:
        return data
    found = shift_rows(
        spec.shifts, spec.splits.report, prepared.inputs, data, prepared.tasks, prepared.others
    )
    data = {
        task: replace(each, rows={**each.rows, **{f"{ROLE}{n}": r for n, r in found[task].items()}})
        for task, each in data.items()
    }
    if spec.adapt_on_shift is not None:
        shift, roles = spec.shifts[spec.adapt_on_shift], adapted_roles(prepared)
        data = adapted_rows(shift, prepared.inputs, data, prepared.tasks, roles)
    return {name: with_features(prepared, task) for name, task in data.items()}


def with_features(prepared: Prepared, task: TaskData) -> TaskData:
    """Add every extractor's features of a task's shifted rows, which gates read."""
    extractors = prepared.needs.extractors.values()
    under = [role for role in task.rows if role.startswith((ROLE, ADAPT))] if extractors else ()
    rows = dict(task.rows)
    for role in under:
        found: dict[str, Path] = {
            each.fingerprint: features_of(prepared, task, role, each) for each in extractors
        }
        rows[role] = replace(rows[role], features=found)
    return replace(task, rows=rows)


def features_of(prepared: Prepared, task: TaskData, role: str, extractor: Extractor) -> Path:
    """File of an extractor's features of a task's shifted rows."""
    spec, kind = prepared.spec, ROLE if role.startswith(ROLE) else ADAPT
    name, of = role.removeprefix(kind), "report"
    if kind == ADAPT:
        assert spec.adapt_on_shift is not None
        name, of = spec.adapt_on_shift, name
    shift = spec.shifts[name]
    if shift.corruption is None:
        other = prepared.others[name, task.name]
        at = (other.name, split_of(other, spec.splits.report, name))
        return prepare_features(
            extractor, {other.name: other}, [at], cache_dir(), device=prepared.plan.device
        )[at]
    rows = task.rows[of]
    return corrupted_features(
        extractor, prepared.tasks[task.name], rows.split, rows.indices,
        shift.as_corruption(), cache_dir(), device=prepared.plan.device,
    )  # fmt: skip
