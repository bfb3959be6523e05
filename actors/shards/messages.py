"""What a pass through shards goes by: which rows, and which weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fusion.task_vectors.sparsify import Trim


@dataclass(frozen=True)
class Batch:
    """Rows of pixel files: what the first segment reads, and what the loss is grouped by."""

    parts: tuple[tuple[str, Path, NDArray[np.int64]], ...]
    """(task, pixel file, rows)."""
    labels: Tensor | None = None
    """int64 [B], where the loss is the cross-entropy with them; None: it is the entropy."""
    beta: float = 1.0
    """Inverse temperature of the logits in that cross-entropy."""

    @property
    def size(self) -> int:
        """Images in all."""
        return sum(len(rows) for _, _, rows in self.parts)


@dataclass(frozen=True, eq=False)
class Parcel:
    """Tensors by name, which calls carry and few of them open."""

    content: Any

    def open(self) -> Mapping[str, Tensor]:
        """The tensors."""
        found: Mapping[str, Tensor] = self.content
        return found


@dataclass(frozen=True, eq=False)
class Weights:
    """Which weights a pass goes through; `key` is equal where all else is."""

    key: str
    method: str | None = None
    """A static method, with `params` and the result of its `survey`."""
    params: Mapping[str, Any] | None = None
    coding: Tensor | None = None
    """[1 or B, T, 1 or G]."""
    trim: Trim = field(default_factory=Trim)
    survey: Any = None
    """Of the method, or of the trim."""
    statistics: tuple[str, ...] = ()
    """Of a method that needs some: the key of each expert's files."""
    learned: Parcel | None = None
    """Of a method whose parameters live in the shards: what was learned."""
    task: str | None = None
    """Of a method that makes one model for each task: whose."""
    own: bool = False
    """Whether it is a member of the pool, or part of what makes a model a sample: no result that
    could be exported, so it is not rounded to the dtype of results."""


def weights_of(surveyed: Weights, coding: Tensor) -> Weights:
    """The same treatment of task vectors with this coding; keyless: nothing is filled with it."""
    return Weights("", coding=coding, trim=surveyed.trim, survey=surveyed.survey)


def for_task(every: Weights, task: str) -> Weights:
    """One task's model, of a method that makes one a task; the survey is the same for all."""
    return replace(every, key=f"{every.key} {task}", task=task)
