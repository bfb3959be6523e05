"""Parse weights of experts from a sweep file: one for each task, or for each task and tensor."""

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

    The accepted forms are those of `weighted_average`. The names of the whole model are checked,
    even if `vectors` is one shard of it.

    Raises:
        InputError: see `weighted_average`.
    """
    rows = [
        task_weights(task, entry, vectors.groups)
        for task, entry in entries(vectors.tasks, weights).items()
    ]
    return {name: [row[name] for row in rows] for name in vectors.deltas}


def entries(
    tasks: Sequence[str],
    weights: Sequence[Any] | Mapping[str, Any] | Tensor | None,
    owner: str = "weights",
    what: str = "weight",
) -> dict[str, Any]:
    """Task -> the entry given for it, in the order of `tasks`.

    Args:
        tasks: names of the tasks.
        weights: the entries; None: 1 for each.
        owner: prefix of messages.
        what: an entry, in words.

    Raises:
        InputError: wrong length, an unknown task, a task without an entry.
    """
    if weights is None:
        return dict.fromkeys(tasks, 1.0)
    if isinstance(weights, Tensor):
        weights = list(weights.tolist()) if weights.ndim else [weights.item()]
    if isinstance(weights, Mapping):
        for task in weights:
            if task not in tasks:
                raise InputError(f"{owner}: {unknown('task', str(task), tasks)}")
        missing = [task for task in tasks if task not in weights]
        if missing:
            raise InputError(f"{owner}: task {missing[0]!r}: no {what} given")
        return {task: weights[task] for task in tasks}
    if len(weights) != len(tasks):
        raise InputError(
            f"{owner}: {len(weights)} given; one for each of {len(tasks)} tasks needed"
            f" ({', '.join(tasks)})"
        )
    return dict(zip(tasks, weights, strict=True))


def task_weights(task: str, entry: Any, groups: Sequence[str]) -> dict[str, float]:
    """Tensor name -> weight of one task, for all tensors of the model.

    Raises:
        InputError: wrong length, an unknown or missing tensor, no finite number.
    """
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
    """Tensor name -> weight, from exact names and patterns.

    An exact name wins, else the longest matching pattern, and among equally long ones the
    alphabetically first. So the order of the mapping does not matter.

    Args:
        owner: prefix of messages.
        patterns: tensor name or pattern (`fnmatch`) -> weight.
        groups: names of the floating-point tensors.

    Raises:
        InputError: a pattern that matches no tensor, a tensor without a weight, no finite number.
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
    """Convert to a finite float.

    Raises:
        InputError: `value` is no finite number.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise InputError(f"{owner}: {value!r}; a finite number needed")
    return float(value)


def one_expert(owner: str, tasks: Sequence[str], expert: str | None) -> str:
    """The expert that a method of base and one expert takes: the named one, or the only one.

    Args:
        owner: name of the method, for messages.
        tasks: names of the experts.
        expert: the name given; None: none.

    Raises:
        InputError: an unknown expert, or none named among several.
    """
    if expert is None:
        if len(tasks) > 1:
            raise InputError(f"{owner}: expert: not given; one of {', '.join(tasks)} needed")
        return tasks[0]
    if expert not in tasks:
        raise InputError(f"{owner}: expert: {unknown('expert', expert, tasks)}")
    return expert
