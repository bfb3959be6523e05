"""Rows of a task by role (fit, select, report), for evaluation and training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from actors.data.task import Role

if TYPE_CHECKING:  # torch takes seconds to load, and plans need none of it
    from torch import Tensor

BATCH = 256
"""Rows a forward pass; small enough for a laptop, large enough for full matrix products."""

SAMPLES = 64
"""Rows of a forward pass in which each row has a model of its own."""


@dataclass(frozen=True)
class Rows:
    """The rows of one task in one role: a file of prepared rows and row indices."""

    file: Path
    indices: NDArray[np.int64] | None = None
    """None: all, in order."""
    features: Mapping[str, Path] = field(default_factory=dict)
    """Hash of an extractor -> its features of all rows of the file's split."""


@dataclass(frozen=True)
class TaskData:
    """Data of one task for evaluation."""

    name: str
    head: Path
    """The zero-shot head [C, D], or the task's own, logit scale included."""
    rows: Mapping[str, Rows]
    """role (fit, select, report) -> rows."""
    unseen: bool = False
    """Whether no expert is of it: it has rows to be measured on alone, and nothing is learned,
    fitted or chosen by it."""


@dataclass(frozen=True, eq=False)
class Captioned:
    """Images of one task with its class names."""

    images: Tensor
    """uint8 [N, 3, H, W]."""
    labels: Tensor
    """int64 [N], in [0, number of class names)."""
    classnames: Sequence[str]
    templates: Sequence[str]
    """Each with one `{}` for the class name."""


def batches(size: int, batch: int = BATCH) -> Iterator[slice]:
    """Consecutive slices of at most `batch` rows."""
    for start in range(0, size, batch):
        yield slice(start, min(start + batch, size))


def tasks_with(data: Mapping[str, TaskData], role: str) -> list[str]:
    """Tasks that have rows in that role: not all of a shift set do, and unseen ones only report.

    Raises:
        KeyError: rows that were not prepared, which is a bug of the caller.
    """
    there = [name for name, task in data.items() if role in task.rows]
    lacking = [name for name, task in data.items() if name not in there and not task.unseen]
    if lacking and (role in get_args(Role) or not there):
        raise KeyError(f"task {lacking[0]!r} has no rows of role {role!r}")
    return there
