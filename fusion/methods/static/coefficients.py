"""Coefficients of experts from a sweep file: one a task, or one a task and tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from fusion.errors import InputError, unknown
from fusion.task_vectors.task_vectors import TaskVectors


def tensor_weights(
    vectors: TaskVectors, weights: Sequence[Any] | Mapping[str, Any] | Tensor | None
) -> dict[str, list[float]]:
    """Tensor name -> T weights, for the floating-point tensors of these task vectors.

    The forms are those of `weighted_average`; the whole model's names are checked, even where
    `vectors` is one shard of it.

    Raises:
        InputError: what `weighted_average` says.
    """
    rows = [
        task_weights(task, entry, vectors.groups)
        for task, entry in entries(vectors.tasks, weights).items()
    ]
    return {name: [row[name] for row in rows] for name in vectors.deltas}


def entries(
    tasks: Sequence[str], weights: Sequence[Any] | Mapping[str, Any] | Tensor | None
) -> dict[str, Any]:
    """Task -> what the user gave for it, in the order of `tasks`."""
    if weights is None:
        return dict.fromkeys(tasks, 1.0)
    if isinstance(weights, Tensor):
        weights = list(weights.tolist()) if weights.ndim else [weights.item()]
    if isinstance(weights, Mapping):
        for task in weights:
            if task not in tasks:
                raise InputError(f"weights: {unknown('task', str(task), tasks)}")
        missing = [task for task in tasks if task not in weights]
        if missing:
            raise InputError(f"weights: task {missing[0]!r}: no weight given")
        return {task: weights[task] for task in tasks}
    if len(weights) != len(tasks):
        raise InputError(
            f"weights: {len(weights)} given; one for each of {len(tasks)} tasks needed"
            f" ({', '.join(tasks)})"
        )
    return dict(zip(tasks, weights, strict=True))


def task_weights(task: str, entry: Any, groups: Sequence[str]) -> dict[str, float]:
    """Tensor name -> weight of one task, for all tensors of the model."""
    owner = f"weights: task {task!r}"
    if isinstance(entry, Tensor):
        entry = entry.tolist()
    if isinstance(entry, Mapping):
        return named_weights(owner, entry, groups)
    if isinstance(entry, Sequence) and not isinstance(entry, str):
        if len(entry) != len(groups):
            raise InputError(
                f"{owner}: {len(entry)} weights given;"
                f" one for each of {len(groups)} floating-point tensors needed"
            )
        return {name: number(owner, weight) for name, weight in zip(groups, entry, strict=True)}
    return dict.fromkeys(groups, number(owner, entry))


def named_weights(
    owner: str, patterns: Mapping[str, Any], groups: Sequence[str]
) -> dict[str, float]:
    """Tensor name -> weight, from names and patterns: a name wins, else the longest pattern.

    Of equally long ones the first in the alphabet: a mapping means the same in any order.
    """
    values = {
        str(pattern): number(f"{owner}: {pattern!r}", weight)
        for pattern, weight in patterns.items()
    }
    for pattern in values:
        if pattern not in groups and not any(fnmatchcase(name, pattern) for name in groups):
            raise InputError(f"{owner}: {pattern!r}: no floating-point tensor has such a name")
    found = {}
    ranked = sorted(values, key=lambda pattern: (-len(pattern), pattern))
    for name in groups:
        match = name if name in values else next((p for p in ranked if fnmatchcase(name, p)), None)
        if match is None:
            raise InputError(f"{owner}: tensor {name!r}: no weight given (add '*' for the rest)")
        found[name] = values[match]
    return found


def number(owner: str, value: Any) -> float:
    """`value` as a finite float.

    Raises:
        InputError: anything else.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise InputError(f"{owner}: {value!r}; a finite number needed")
    return float(value)
