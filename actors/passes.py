"""What a pass through shards goes by: which rows, and which weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fusion.trim import Trim


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
