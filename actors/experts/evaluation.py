"""What is evaluated, on which rows, and what an evaluation found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.data.task import Role

BATCH = 256
"""Images a forward pass; small enough for a laptop, large enough for full matrix products."""

REFERENCES = ("pretrained", "experts")
"""What can be evaluated beside the methods: the base, and each expert on its own task."""


@dataclass(frozen=True)
class Recipe:
    """What is evaluated: a method of `fusion.METHODS`, or a reference, with its parameters."""

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    learned: bytes | None = field(default=None, repr=False)
    """Of a method that learns: the file of what was learned (a gate, or a coding)."""


@dataclass(frozen=True)
class Rows:
    """The rows of one task that play one role: a pixel file, and which of its rows."""

    pixels: Path
    indices: NDArray[np.int64] | None = None
    """None: all, in order."""
    features: Mapping[str, Path] = field(default_factory=dict)
    """Hash of an extractor -> its features of all rows of the pixel file's split."""


@dataclass(frozen=True)
class TaskData:
    """One task as an evaluation reads it."""

    name: str
    head: Path
    """The zero-shot head [C, D], or the task's own, logit scale included."""
    rows: Mapping[str, Rows]
    """role (fit, select, report) -> rows."""
    unseen: bool = False
    """Whether no expert is of it: it has rows to be measured on alone, and nothing is learned,
    fitted or chosen by it."""


@dataclass(frozen=True)
class TaskScore:
    """One task's result on N rows."""

    correct: NDArray[np.bool_]
    """[N]: whether the top class is the label (the first of equal logits counts as the top)."""
    nll: float
    """Mean negative log-likelihood over the N rows, in nats."""

    @property
    def accuracy(self) -> float:
        """The fraction that is correct."""
        return float(self.correct.mean())


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found and cost."""

    scores: Mapping[str, TaskScore]
    seconds: float
    peak_bytes: int
    """The most the process held meanwhile, resident (on a GPU: allocated); of a model that is cut,
    the most that one of its shards held; of a method that learns, while it was taught too. See
    `peak_memory.py` for calls that run side by side."""
    unseen: frozenset[str] = frozenset()
    """The sweep's tasks without an expert, evaluated here or not."""

    def metrics(self) -> dict[str, float]:
        """`acc/<task>`, `nll/<task>` and their unweighted means over tasks.

        Of a sweep with unseen tasks also the means over the two kinds, `acc/seen`, `acc/unseen`,
        as far as tasks of the kind were evaluated.
        """
        found: dict[str, float] = {}
        if not self.scores:
            return found
        for kind in ("acc", "nll"):
            each = {
                task: score.accuracy if kind == "acc" else score.nll
                for task, score in self.scores.items()
            }
            found |= {f"{kind}/{task}": value for task, value in each.items()}
            found[f"{kind}/mean"] = float(np.mean(list(each.values())))
            if not self.unseen:
                continue
            for group, members in (
                ("seen", each.keys() - self.unseen),
                ("unseen", each.keys() & self.unseen),
            ):
                if members:
                    values = [value for task, value in each.items() if task in members]
                    found[f"{kind}/{group}"] = float(np.mean(values))
        return found

    def plain(self) -> dict[str, Any]:
        """What a ledger entry keeps: metrics, samples a task, seconds, peak memory."""
        return {
            "metrics": self.metrics(),
            "n": {task: len(score.correct) for task, score in self.scores.items()},
            "trial_s": self.seconds,
            "peak_bytes": self.peak_bytes,
        }


def score(z: Tensor, labels: Tensor) -> TaskScore:
    """Compare logits [N, C] with labels [N]; a row with a NaN or +∞ is wrong, and its loss NaN."""
    # Losses are summed in float64, so that the mean does not depend on the batch size.
    nll = torch.nn.functional.cross_entropy(z.double(), labels).item()
    top = torch.where((z.isnan() | z.isposinf()).any(dim=1), -1, z.argmax(dim=1))
    return TaskScore((top == labels).numpy(), nll)


def batches(size: int, batch: int = BATCH) -> Iterator[slice]:
    """Consecutive slices of at most `batch` rows."""
    for start in range(0, size, batch):
        yield slice(start, min(start + batch, size))


def tasks_with(data: Mapping[str, TaskData], role: str) -> list[str]:
    """Tasks with rows of that role; a shift set may be of some, fit and select of seen tasks alone.

    Raises:
        KeyError: rows that were not prepared: a bug of the caller, not the user's.
    """
    there = [name for name, task in data.items() if role in task.rows]
    lacking = [name for name, task in data.items() if name not in there and not task.unseen]
    if lacking and (role in get_args(Role) or not there):
        raise KeyError(f"task {lacking[0]!r} has no rows of role {role!r}")
    return there
