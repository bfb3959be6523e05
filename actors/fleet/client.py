"""Client of a fleet: sends typed requests to the dispatcher and waits for their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from torch import Tensor

from actors.artifacts.recipe import Recipe
from actors.experts.evaluation import Evaluation
from actors.experts.requests import (
    Evaluate,
    Fit,
    Gradients,
    GramMatrix,
    Logits,
    Merge,
    Request,
    Result,
    Running,
    Statistics,
    Train,
)
from actors.fleet.transport import fetched
from fusion.methods.learned.steps import Gradient, MicroBatch
from fusion.task_vectors.gram import Gram
from fusion.task_vectors.sparsify import Trim


@dataclass(frozen=True)
class Client:
    """The calls of `Experts` on a fleet, by way of its dispatcher. All but `submit` block."""

    dispatcher: Any
    replicas: int = 1
    label: str = ""
    """The trial whose usage its calls are added to."""

    def submit(self, request: Request[Any]) -> Any:
        """An object reference to the request's result."""
        return self.dispatcher.call.remote(request, label=self.label)

    def call(self, request: Request[Result]) -> Result:
        """The request's result; an error that was raised in the replica is raised here."""
        found: Result = fetched(self.submit(request))
        return found

    def evaluate(self, recipe: Recipe, role: str) -> Evaluation:
        """See `Evaluator.evaluate`."""
        return self.call(Evaluate(recipe, role))

    def evaluate_all(self, recipes: Sequence[Recipe], role: str) -> list[Evaluation]:
        """See `Evaluator.evaluate_all`."""
        refs = [self.submit(Evaluate(recipe, role)) for recipe in recipes]
        return [fetched(ref) for ref in refs]

    def logits(self, recipe: Recipe, role: str) -> dict[str, Tensor]:
        """See `Evaluator.logits`. Moves N·C floats a task through the object store: for analyses of
        few models."""
        return self.call(Logits(recipe, role))

    def fit(self, recipe: Recipe) -> tuple[bytes, dict[str, float]]:
        """See `Trainer.fit`."""
        return self.call(Fit(recipe))

    def train(
        self, recipe: Recipe, state: bytes | None, first: int, last: int, seed: int
    ) -> tuple[bytes, list[dict[str, float]]]:
        """See `Trainer.train`."""
        return self.call(Train(recipe, state, first, last, seed))

    def gradients(
        self, micro_batches: Sequence[MicroBatch], role: str, trim: Trim
    ) -> list[Gradient]:
        """See `Trainer.gradients`. The micro-batches are divided among all replicas; the result
        does not depend on which replica computes one."""
        each = -(-len(micro_batches) // self.replicas)
        refs = [
            self.submit(Gradients(micro_batches[start : start + each], role, trim))
            for start in range(0, len(micro_batches), each)
        ]
        return [gradient for ref in refs for gradient in fetched(ref)]

    def statistics(self, recipe: Recipe) -> tuple[str, ...]:
        """See `WeightsReader.statistics`."""
        return self.call(Statistics(recipe))

    def running(self, recipe: Recipe) -> dict[str, Tensor]:
        """See `WeightsReader.running`."""
        return self.call(Running(recipe))

    def gram(self) -> Gram:
        """See `WeightsReader.gram`."""
        return self.call(GramMatrix())

    def merge(self, recipe: Recipe) -> dict[str, Tensor]:
        """See `WeightsReader.merge`. Moves a whole model through the object store."""
        return self.call(Merge(recipe))

    def named(self, label: str) -> Client:
        """The same client, whose calls are added to the usage of another label."""
        return replace(self, label=label)

    def busy_seconds(self) -> float:
        """Seconds that replicas have worked for the label."""
        return float(ray.get(self.dispatcher.busy_seconds.remote(self.label)))

    def repeated_calls(self) -> int:
        """Number of calls that were repeated so far because a process died."""
        return int(ray.get(self.dispatcher.repeated_calls.remote()))
