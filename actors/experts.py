"""Experts: merge by recipe, evaluate on a task's rows; in one process. `fleet.py`: on Ray."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.embeddings import EmbeddingCache
from actors.heads import read_head
from actors.models import ImageEncoder
from actors.pixels import Pixels, open_pixels
from fusion.coding import mix, one_hot
from fusion.errors import InputError
from fusion.parameters import unknown
from fusion.registry import METHODS, LogitSpace
from fusion.state import TaskVectors
from fusion.zeroshot import logits

BATCH = 256
"""Images a forward pass; small enough for a laptop, large enough for full matrix products."""

REFERENCES = ("pretrained", "experts")
"""What can be evaluated beside the methods: the base, and each expert on its own task."""


@dataclass(frozen=True)
class Recipe:
    """What is evaluated: a method of `fusion.METHODS`, or a reference, with its parameters."""

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """The rows of one task that play one role: a pixel file, and which of its rows."""

    pixels: Path
    indices: NDArray[np.int64] | None = None
    """None: all, in order."""


@dataclass(frozen=True)
class TaskData:
    """One task as an evaluation reads it."""

    name: str
    head: Path
    """The zero-shot head [C, D], logit scale included."""
    rows: Mapping[str, Rows]
    """role (fit, select, report) -> rows."""


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
    """Peak resident memory of the process so far; on a GPU its peak allocated memory."""

    def metrics(self) -> dict[str, float]:
        """`acc/<task>`, `nll/<task>` and their unweighted means over tasks."""
        found = {f"acc/{task}": score.accuracy for task, score in self.scores.items()}
        found["acc/mean"] = float(np.mean([score.accuracy for score in self.scores.values()]))
        found |= {f"nll/{task}": score.nll for task, score in self.scores.items()}
        found["nll/mean"] = float(np.mean([score.nll for score in self.scores.values()]))
        return found

    def plain(self) -> dict[str, Any]:
        """What a ledger entry keeps: metrics, samples a task, seconds, peak memory."""
        return {
            "metrics": self.metrics(),
            "n": {task: len(score.correct) for task, score in self.scores.items()},
            "trial_s": self.seconds,
            "peak_bytes": self.peak_bytes,
        }


class Experts(Protocol):
    """Where pinned experts are reached: in this process, or on a cluster."""

    def evaluate(self, recipe: Recipe, role: str) -> Evaluation:
        """Merge by the recipe in place and evaluate every task's rows of that role."""
        ...

    def merge(self, recipe: Recipe) -> dict[str, Tensor]:
        """The merged state dict, on the CPU."""
        ...


class LocalExperts:
    """Base, task vectors and one resident model, in this process."""

    def __init__(
        self,
        vectors: TaskVectors,
        encoder: ImageEncoder,
        data: Mapping[str, TaskData],
        embeddings: EmbeddingCache,
    ) -> None:
        self.vectors = vectors
        self.encoder = encoder
        self.data = data
        self.embeddings = embeddings
        self.heads = {name: read_head(task.head) for name, task in data.items()}
        self.opened: dict[Path, Pixels] = {}

    def merge(self, recipe: Recipe) -> dict[str, Tensor]:
        """The merged state dict, on the CPU; the resident model is not touched.

        Raises:
            InputError: an unknown method or parameter, or a method that merges no weights.
        """
        return {name: tensor.cpu() for name, tensor in merged(self.vectors, recipe).items()}

    def evaluate(self, recipe: Recipe, role: str) -> Evaluation:
        """Merge by the recipe in the resident model and evaluate every task's rows.

        `experts` evaluates each expert on the task of its name; tasks without one are left out.
        """
        start = time.perf_counter()
        scores = {}
        if recipe.method == "experts":
            for task in (name for name in self.data if name in self.vectors.tasks):
                embedded = self.embedded(task, task, role)
                head = self.heads[task]
                parts = (logits(embedded[rows], head) for rows in batches(len(embedded)))
                scores[task] = self.score(task, role, parts)
        elif isinstance(method := METHODS.get(recipe.method), LogitSpace):
            for task in self.data:
                stack = torch.stack([self.embedded(t, task, role) for t in self.vectors.tasks])
                head = self.heads[task]
                parts = (
                    method.fuse(stack[:, rows], head, **recipe.params)
                    for rows in batches(stack.shape[1])
                )
                scores[task] = self.score(task, role, parts)
        else:
            merged(self.vectors.into(self.encoder.arena), recipe)
            for task in self.data:
                head = self.heads[task].to(self.encoder.device)
                parts = (
                    logits(self.encoder.embed(images).float(), head)
                    for images in self.images(task, role)
                )
                scores[task] = self.score(task, role, parts)
        return Evaluation(scores, time.perf_counter() - start, peak_bytes(self.encoder.device))

    def embed(self, expert: str, role: str) -> None:
        """Fill the cache with one expert's embeddings of every task's rows."""
        for task in self.data:
            self.embedded(expert, task, role)

    def embedded(self, expert: str, task: str, role: str) -> Tensor:
        """Un-normalised image embeddings [N, D], float32, from the cache or made now."""
        rows = self.data[task].rows[role]

        def make() -> Tensor:
            mix(self.vectors.into(self.encoder.arena), one_hot(self.vectors.tasks, expert))
            return torch.cat([self.encoder.embed(x).float().cpu() for x in self.images(task, role)])

        return self.embeddings.get(expert, rows.pixels, rows.indices, make)

    def images(self, task: str, role: str) -> Iterator[Tensor]:
        """uint8 batches [B, 3, H, W] of the task's rows, in order, on the encoder's device."""
        rows = self.data[task].rows[role]
        pixels = self.open(rows.pixels)
        size = len(pixels.labels) if rows.indices is None else len(rows.indices)
        for part in batches(size):
            at = part if rows.indices is None else torch.from_numpy(rows.indices[part])
            yield pixels.images[at].to(self.encoder.device)

    def score(self, task: str, role: str, parts: Iterator[Tensor]) -> TaskScore:
        """Compare logits [B, C], batch by batch, with the labels of the task's rows."""
        rows = self.data[task].rows[role]
        labels = self.open(rows.pixels).labels
        if rows.indices is not None:
            labels = labels[torch.from_numpy(rows.indices)]
        z = torch.cat([part.cpu() for part in parts])
        # Losses are summed in float64, so that the mean does not depend on the batch size.
        nll = torch.nn.functional.cross_entropy(z.double(), labels).item()
        return TaskScore((z.argmax(dim=1) == labels).numpy(), nll)

    def open(self, path: Path) -> Pixels:
        """The memory-mapped pixel file, opened once."""
        if path not in self.opened:
            self.opened[path] = open_pixels(path)
        return self.opened[path]


def merged(vectors: TaskVectors, recipe: Recipe) -> dict[str, Tensor]:
    """θ by recipe: a static method, or `pretrained` (the base).

    Raises:
        InputError: an unknown name, or a method that yields logits, not weights.
    """
    method = METHODS.get(recipe.method)
    if isinstance(method, LogitSpace):
        raise InputError(f"{recipe.method}: fuses logits; there is no single model to build")
    if method is not None:
        return method.merge(vectors, **recipe.params)
    if recipe.method == "pretrained":
        return mix(vectors, torch.zeros(1, len(vectors.tasks), 1))
    raise InputError(unknown("method", recipe.method, [*METHODS, "pretrained"]))


def batches(size: int) -> Iterator[slice]:
    """Consecutive slices of at most `BATCH` rows."""
    for start in range(0, size, BATCH):
        yield slice(start, min(start + BATCH, size))


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process: allocated on a GPU, resident otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
