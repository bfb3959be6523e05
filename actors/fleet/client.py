"""What a trial holds of a fleet: the experts' calls, by way of the desk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from torch import Tensor

from actors.artifacts.recipe import Recipe
from actors.experts.evaluation import Evaluation
from actors.fleet.transport import fetched
from fusion.methods.learned.steps import Gradient, Lesson
from fusion.task_vectors.gram import Gram
from fusion.task_vectors.sparsify import Trim


@dataclass(frozen=True)
class Client:
    """What a trial holds of a fleet: `Experts`, by way of the desk."""

    desk: Any
    replicas: int = 1
    label: str = ""
    """Who pays for its calls."""

    def evaluate(self, recipe: Recipe, role: str) -> Evaluation:
        """Blocks until a replica has done it."""
        result: Evaluation = fetched(self.submit("evaluate", recipe, role))
        return result

    def evaluate_all(self, recipes: Sequence[Recipe], role: str) -> list[Evaluation]:
        """Blocks until replicas have done all of them."""
        refs = [self.submit("evaluate", recipe, role) for recipe in recipes]
        return [fetched(ref) for ref in refs]

    def logits(self, recipe: Recipe, role: str) -> dict[str, Tensor]:
        """Blocks; moves N·C floats a task through the object store: for analyses of few models."""
        found: dict[str, Tensor] = fetched(self.submit("logits", recipe, role))
        return found

    def fit(self, recipe: Recipe) -> tuple[bytes, dict[str, float]]:
        """Blocks until a replica has done it."""
        found: tuple[bytes, dict[str, float]] = fetched(self.submit("fit", recipe))
        return found

    def statistics(self, recipe: Recipe) -> tuple[str, ...]:
        """Blocks until a replica has them."""
        found: tuple[str, ...] = fetched(self.submit("statistics", recipe))
        return found

    def train(
        self, recipe: Recipe, state: bytes | None, first: int, last: int, seed: int
    ) -> tuple[bytes, list[dict[str, float]]]:
        """Blocks until a replica has taken the steps."""
        found: tuple[bytes, list[dict[str, float]]] = fetched(
            self.submit("train", recipe, state, first, last, seed)
        )
        return found

    def gram(self) -> Gram:
        """Blocks; inner products of the task vectors."""
        found: Gram = fetched(self.submit("gram"))
        return found

    def merge(self, recipe: Recipe) -> dict[str, Tensor]:
        """Blocks; moves a whole model through the object store: for tests and exports."""
        result: dict[str, Tensor] = fetched(self.submit("merge", recipe))
        return result

    def gradients(self, lessons: Sequence[Lesson], role: str, trim: Trim) -> list[Gradient]:
        """Blocks; lessons are dealt to all replicas: the result is the same on any of them."""
        each = -(-len(lessons) // self.replicas)
        refs = [
            self.submit("gradients", lessons[start : start + each], role, trim)
            for start in range(0, len(lessons), each)
        ]
        return [gradient for ref in refs for gradient in fetched(ref)]

    def submit(self, method: str, *args: Any) -> Any:
        """An object reference to the result."""
        return self.desk.call.remote(method, *args, label=self.label)

    def named(self, label: str) -> Client:
        """The same, its calls paid by another."""
        return replace(self, label=label)

    def spent(self) -> float:
        """Seconds that replicas have worked for the label."""
        return float(ray.get(self.desk.spent.remote(self.label)))

    def fallen(self) -> int:
        """How many calls were made again so far, since a process died."""
        return int(ray.get(self.desk.fallen.remote()))
