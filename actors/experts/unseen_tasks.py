"""Unseen tasks and adapted rows: what a method may learn from, and what it is measured on.

A task is *unseen* where the pool has experts of other tasks and none of it: merged models are
measured on it, and nothing is learned from it, fitted to it or chosen by it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from actors.data.task_rows import TaskData, tasks_with
from fusion.registry import METHODS

ADAPT = "adapt/"
"""How the role of rows begins that are adapted to in the place of another role's."""


def unseen_of(data: Mapping[str, TaskData]) -> frozenset[str]:
    """The tasks that no expert is of."""
    return frozenset(name for name, task in data.items() if task.unseen)


def learners(data: Mapping[str, TaskData]) -> dict[str, TaskData]:
    """The tasks that may be learned from."""
    return {name: task for name, task in data.items() if not task.unseen}


def adapted_role(data: Mapping[str, TaskData], role: str) -> str:
    """Whose rows are learned from, unlabelled, where a method says `role`: the same images under
    shift, where the sweep file has `adapt_on_shift`."""
    under = f"{ADAPT}{role}"
    return under if any(under in task.rows for task in data.values()) else role


def stays_with_seen(method: str, params: Mapping[str, Any]) -> bool:
    """Whether a method is not measured on unseen tasks.

    It makes one model or classifier a task, and none for a task without an expert; or it would
    read an unseen task's images all together, or their labels, before it classifies them.

    >>> stays_with_seen("emr", {}), stays_with_seen("ties", {})
    (True, False)
    >>> stays_with_seen("dawin", {}), stays_with_seen("dawin", {"granularity": "sample"})
    (True, False)
    """
    row = METHODS.get(method)
    if row is None:
        return method == "experts"
    a_task = row.output == "model_per_task" or row.learned == "classifier"
    return a_task or row.whole_task(params)


def measured(
    data: Mapping[str, TaskData],
    experts: Collection[str],
    method: str,
    params: Mapping[str, Any],
    role: str,
) -> list[str]:
    """The tasks that a recipe is evaluated on, of those with rows of that role.

    `experts`, and methods that make one model an expert, are measured on tasks with an expert.
    """
    names = tasks_with(data, role)
    row = METHODS.get(method)
    if method == "experts" or (row is not None and row.output == "model_per_task"):
        names = [name for name in names if name in experts]
    if stays_with_seen(method, params):
        names = [name for name in names if not data[name].unseen]
    return names
