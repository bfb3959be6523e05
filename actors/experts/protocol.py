"""Protocols of the experts by use: evaluate, train, or read weights.

`LocalExperts` (in this process) and `Client` (on a cluster) implement all of them. A caller's
parameter has the protocol that the caller needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from actors.artifacts.recipe import Recipe
from actors.experts.evaluation import Evaluation
from fusion.methods.learned.steps import Gradient, MicroBatch
from fusion.task_vectors.gram import Gram
from fusion.task_vectors.sparsify import Trim


class Evaluator(Protocol):
    """Evaluates recipes."""

    @property
    def replicas(self) -> int:
        """Number of calls that run at the same time."""
        ...

    def evaluate(self, recipe: Recipe, role: str) -> Evaluation:
        """Evaluate the recipe on every task's rows of that role."""
        ...

    def evaluate_all(self, recipes: Sequence[Recipe], role: str) -> list[Evaluation]:
        """Evaluate several recipes, as many at a time as there are replicas."""
        ...

    def logits(self, recipe: Recipe, role: str) -> dict[str, Tensor]:
        """Task -> float32 logits [N, C] on the CPU, of every task's rows of that role, in order."""
        ...


class Trainer(Protocol):
    """Runs training steps of methods that learn."""

    def gradients(
        self, micro_batches: Sequence[MicroBatch], role: str, trim: Trim
    ) -> list[Gradient]:
        """Losses of the micro-batches' rows of that role, and their gradients by coding."""
        ...

    def train(
        self, recipe: Recipe, state: bytes | None, first: int, last: int, seed: int
    ) -> tuple[bytes, list[dict[str, float]]]:
        """Run the steps [first, last) of a method whose parameters are stored in the shards.

        Returns the state after them, as a file, and task -> loss of each step. State None: start.
        """
        ...

    def fit(self, recipe: Recipe) -> tuple[bytes, dict[str, float]]:
        """Fit classifiers of embeddings: their file, and the chosen values by name."""
        ...


class WeightsReader(Protocol):
    """Reads weights: of the experts, of merges of them, and statistics that merges need."""

    def merge(self, recipe: Recipe) -> dict[str, Tensor]:
        """The merged state dict, on the CPU."""
        ...

    def gram(self) -> Gram:
        """Inner products of the task vectors."""
        ...

    def running(self, recipe: Recipe) -> dict[str, Tensor]:
        """Running statistics of the batch norm of a recipe's model, or `<task>/<name>` of one model
        a task; none where it has no batch norm, or is no single model."""
        ...

    def statistics(self, recipe: Recipe) -> tuple[str, ...]:
        """Keys of the statistics of data that a method merges by; missing ones are computed."""
        ...


class LearningExperts(Evaluator, Trainer, Protocol):
    """Steps, and evaluations of their result: for trials of methods that learn."""


class SelectionExperts(Evaluator, WeightsReader, Protocol):
    """Evaluations, and the experts' weights: for trials that select ingredients."""


class Experts(Evaluator, Trainer, WeightsReader, Protocol):
    """All calls of the experts."""
