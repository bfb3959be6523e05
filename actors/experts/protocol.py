"""Where pinned experts are reached: in this process, or on a cluster, with the same calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from actors.artifacts.recipe import Recipe
from actors.experts.evaluation import Evaluation
from fusion.methods.learned.steps import Gradient, Lesson
from fusion.task_vectors.gram import Gram
from fusion.task_vectors.sparsify import Trim


class Experts(Protocol):
    """Where pinned experts are reached: in this process, or on a cluster."""

    @property
    def replicas(self) -> int:
        """How many calls are served at a time."""
        ...

    def evaluate(self, recipe: Recipe, role: str) -> Evaluation:
        """Every task's rows of that role through what the recipe makes."""
        ...

    def evaluate_all(self, recipes: Sequence[Recipe], role: str) -> list[Evaluation]:
        """Each of several recipes, as many at a time as there are replicas."""
        ...

    def logits(self, recipe: Recipe, role: str) -> dict[str, Tensor]:
        """Task -> float32 [N, C] on the CPU, of every task's rows of that role, in their order."""
        ...

    def merge(self, recipe: Recipe) -> dict[str, Tensor]:
        """The merged state dict, on the CPU."""
        ...

    def statistics(self, recipe: Recipe) -> tuple[str, ...]:
        """Keys of the statistics of data that a method merges by; gathered where they lack."""
        ...

    def train(
        self, recipe: Recipe, state: bytes | None, first: int, last: int, seed: int
    ) -> tuple[bytes, list[dict[str, float]]]:
        """Steps [first, last) of a method whose parameters live in the shards: the state after
        them, as a file, and task -> loss of each step. State None: the beginning."""
        ...

    def gram(self) -> Gram:
        """Inner products of the task vectors."""
        ...

    def fit(self, recipe: Recipe) -> tuple[bytes, dict[str, float]]:
        """What a method of the logit plane keeps, as a file, and what it chose: name -> value."""
        ...

    def gradients(self, lessons: Sequence[Lesson], role: str, trim: Trim) -> list[Gradient]:
        """Losses of the lessons' rows of that role, and their gradients by coding."""
        ...
