"""Unseen tasks and adaptation under shift: rows for learning, and tasks for measuring.

A task is *unseen* if the pool has experts, but none for this task. Merged models are measured on
it; it is never used for learning, fitting or selection.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from actors.data.task_rows import TaskData, tasks_with
from fusion.registry import METHODS

ADAPT = "adapt/"
"""Prefix of the role whose rows replace those of another role for adaptation."""


def unseen_of(data: Mapping[str, TaskData]) -> frozenset[str]:
    """The tasks without an expert."""
    return frozenset(name for name, task in data.items() if task.unseen)


def learners(data: Mapping[str, TaskData]) -> dict[str, TaskData]:
    """The tasks whose rows may be used for learning."""
    return {name: task for name, task in data.items() if not task.unseen}


def adapted_role(data: Mapping[str, TaskData], role: str) -> str:
    """Role of the unlabelled rows that a method learns from instead of those of `role`.

    These are the same images under shift if the sweep file sets `adapt_on_shift`, else `role`'s
    own.
    """
    under = f"{ADAPT}{role}"
    return under if any(under in task.rows for task in data.values()) else role


def stays_with_seen(method: str, params: Mapping[str, Any]) -> bool:
    """Whether a method is measured on seen tasks only.

    Such a method makes one model or classifier for each expert's task, or would read all images or
    labels of an unseen task before it classifies them.

    >>> stays_with_seen("emr", {}), stays_with_seen("ties", {})
    (True, False)
    >>> stays_with_seen("dawin", {}), stays_with_seen("dawin", {"granularity": "sample"})
    (True, False)
    """
    row = METHODS.get(method)
    if row is None:
        return method == "experts"
    a_task = row.output == "model_per_task" or row.learned == "classifier"
    return a_task or row.transductive(params)


def measured(
    data: Mapping[str, TaskData],
    experts: Collection[str],
    method: str,
    params: Mapping[str, Any],
    role: str,
) -> list[str]:
    """The tasks with rows of that role on which a recipe is evaluated.

    `experts`, and methods that make one model for each expert, are measured on tasks with an
    expert.
    """
    names = tasks_with(data, role)
    row = METHODS.get(method)
    if method == "experts" or (row is not None and row.output == "model_per_task"):
        names = [name for name in names if name in experts]
    if stays_with_seen(method, params):
        names = [name for name in names if not data[name].unseen]
    return names
