"""Rows of a task by role (fit, select, report), for evaluation and training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from actors.data.task import ACCURACY, Role

if TYPE_CHECKING:  # torch takes seconds to load, and plans need none of it
    from torch import Tensor

BATCH = 256
"""Rows a forward pass; small enough for a laptop, large enough for full matrix products."""

SAMPLES = 64
"""Rows of a forward pass in which each row has a model of its own."""

SYNTHETIC = "synthetic"
"""Role of a task's synthetic rows, which are trained on and in no other role."""


@dataclass(frozen=True)
class Rows:
    """The rows of one task in one role: a file of prepared rows and row indices."""

    file: Path
    indices: NDArray[np.int64] | None = None
    """None: all, in order."""
    features: Mapping[str, Path] = field(default_factory=dict)
    """Hash of an extractor -> its features of all rows of the file's split."""
    split: str = ""
    """The source split that the file is of."""


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
    metric: str = ACCURACY
    """The task's own metric."""
    values: tuple[float, ...] | None = None
    """Class -> the number it means, of tasks whose targets are numbers."""


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


def buckets(lengths: NDArray[np.int64], batch: int = BATCH) -> list[NDArray[np.int64]]:
    """Rows of N in batches of near-equal length: at most `batch` each, the shortest first.

    A function of the lengths alone; rows of one length stay in order. So the rows that share a
    batch, and with it the last bits of what is computed, are the same in every run.

    >>> [part.tolist() for part in buckets(np.array([5, 2, 9, 2]), 2)]
    [[1, 3], [0, 2]]
    """
    order = np.argsort(lengths, kind="stable")
    return [order[part] for part in batches(len(order), batch)]


@dataclass(frozen=True, eq=False)
class Cuts:
    """Batches in which rows are evaluated, and the way back to the order of the rows."""

    parts: Sequence[slice | Tensor]
    """Rows of each batch."""
    back: Tensor | None = None
    """int64 [N]: where each row is, among all parts one after the other; None: rows are in order.
    """

    def joined(self, found: Iterable[Tensor]) -> Tensor:
        """Results [B, …] of the parts, in the order of the rows: [N, …]."""
        import torch  # late: plans need none of it

        whole = torch.cat(list(found))
        return whole if self.back is None else whole[self.back]


def cut_rows(
    count: int, lengths: NDArray[np.int64] | None, at: Tensor | None = None, size: int = BATCH
) -> Cuts:
    """Batches of at most `size` rows: consecutive ones, or of near-equal length where it differs.

    Args:
        count: rows.
        lengths: [count], of ragged rows; None: rows are all alike.
        at: int64 [count], what the rows are called; None: 0 … count − 1.
        size: rows a batch.
    """
    import torch  # late: plans need none of it

    if lengths is None:
        parts = list(batches(count, size))
        return Cuts(parts if at is None else [at[part] for part in parts])
    places = buckets(lengths, size)
    order = np.concatenate([*places, np.zeros(0, np.int64)])
    rows = [torch.from_numpy(place) for place in places]
    named = rows if at is None else [at[part] for part in rows]
    return Cuts(named, torch.from_numpy(np.argsort(order)))


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
