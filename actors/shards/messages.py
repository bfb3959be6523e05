"""Arguments of passes through shards: a batch of rows, and the weights to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fusion.merged_layers.precision import Precision
from fusion.task_vectors.sparsify import Trim


@dataclass(frozen=True)
class Batch:
    """Rows of files of prepared rows, grouped by task."""

    parts: tuple[tuple[str, Path, NDArray[np.int64]], ...]
    """(task, file of prepared rows, row numbers)."""
    labels: Tensor | None = None
    """int64 [B], for a cross-entropy loss; None: the loss is the entropy."""
    beta: float = 1.0
    """Inverse temperature of the logits in that cross-entropy."""
    prefix: Tensor | None = None
    """int64 [B, t], tokens that a decoder has written so far, where the next one is asked for."""
    precision: Precision = "fp32"
    """Precision of its products with weights, in passes that evaluate or learn."""
    averaged: frozenset[str] = frozenset()
    """Tasks whose loss is the entropy of the mean of their rows' logits; see `AnswerHead`."""

    @property
    def size(self) -> int:
        """Number of rows."""
        return sum(len(rows) for _, _, rows in self.parts)


@dataclass(frozen=True, eq=False)
class Parcel:
    """Named tensors that are passed along with calls, and opened by few of them."""

    content: Any

    def open(self) -> Mapping[str, Tensor]:
        """The tensors."""
        found: Mapping[str, Tensor] = self.content
        return found


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of a pass; equal weights have an equal `key`."""

    key: str
    method: str | None = None
    """A static method, with `params` and the result of its `survey`."""
    params: Mapping[str, Any] | None = None
    coding: Tensor | None = None
    """[1 or B, T, 1 or G]."""
    trim: Trim = field(default_factory=Trim)
    survey: Any = None
    """Result of the survey of the method or of the trim."""
    statistics: tuple[str, ...] = ()
    """Key of each expert's statistics files, for a method that reads statistics."""
    learned: Parcel | None = None
    """Learned parameters, for a method whose parameters are in the shards."""
    task: str | None = None
    """Task of the model, for a method that makes one model for each task."""
    own: bool = False
    """Whether the model is a member of the pool or an input of per-sample models. It cannot be
    exported, so it is not rounded to the dtype of results."""
    reference: str | None = None
    """Name of a finished model, whose tensors are copied; the other fields are not used then."""
    running: Parcel | None = None
    """Running statistics of batch norm, which are copied beside the weights; None: the model has no
    batch norm, or they are being measured."""
    precision: Precision = "fp32"
    """Precision of the pass; the weights themselves do not depend on it."""


def weights_of(surveyed: Weights, coding: Tensor) -> Weights:
    """The same trim and survey with this coding; without a key, as it is never merged in full."""
    return Weights("", coding=coding, trim=surveyed.trim, survey=surveyed.survey)


def in_precision(weights: Weights, batch: Batch) -> Weights:
    """These weights for a pass of a batch, in the batch's precision."""
    return replace(weights, precision=batch.precision)


def for_task(every: Weights, task: str) -> Weights:
    """Weights of one task's model, for a per-task method; the survey is shared by all tasks."""
    return replace(every, key=f"{every.key} {task}", task=task)
