"""Requests to the experts: one frozen dataclass for each call, with arguments and result type.

A trial's `Client` builds a request and sends it to the dispatcher. The dispatcher sends it to an
idle replica, which runs it on its `LocalExperts`. Ray's task names, metrics and messages about
deaths use the request's name and method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from actors.artifacts.recipe import Recipe

if TYPE_CHECKING:  # start-up time: a trial's process imports this file, and starts without torch
    from torch import Tensor

    from actors.experts.evaluation import Evaluation, Timing
    from actors.experts.local import LocalExperts
    from fusion.methods.learned.steps import Gradient, MicroBatch
    from fusion.task_vectors.gram import Gram
    from fusion.task_vectors.sparsify import Trim

Result = TypeVar("Result", covariant=True)


class Request(ABC, Generic[Result]):
    """One call of the experts; `Result` is what it returns."""

    name: ClassVar[str]
    """Name of the call, in Ray's task names."""
    learns: ClassVar[bool] = False
    """Whether the call is a training step of a method."""

    @property
    def subject(self) -> str:
        """The method or expert of the call; empty if there is neither."""
        return ""

    @property
    def method(self) -> str:
        """The method of the call's recipe; empty if it has none."""
        return ""

    @property
    def metric_name(self) -> str:
        """The call's name in metrics."""
        return self.name

    @property
    def title(self) -> str:
        """Name of the replica's Ray task, for example `evaluate ties`."""
        return f"{self.name} {self.subject}".rstrip()

    @abstractmethod
    def run(self, experts: LocalExperts) -> Result:
        """Run the call."""


@dataclass(frozen=True)
class RecipeRequest(Request[Result]):
    """A call with one recipe."""

    recipe: Recipe

    @property
    def subject(self) -> str:
        """The recipe's method."""
        return self.recipe.method

    @property
    def method(self) -> str:
        """The recipe's method."""
        return self.recipe.method


@dataclass(frozen=True)
class Evaluate(RecipeRequest["Evaluation"]):
    """Evaluate a recipe on every task's rows of a role."""

    name = "evaluate"
    role: str

    def run(self, experts: LocalExperts) -> Evaluation:
        """See `LocalExperts.evaluate`."""
        return experts.evaluate(self.recipe, self.role)


@dataclass(frozen=True)
class Measure(RecipeRequest[dict[str, Any]]):
    """`Evaluate` with a result of plain types, for callers that start without torch."""

    name = "measure"
    role: str

    @property
    def metric_name(self) -> str:
        """Name of `Evaluate`, which does the same work."""
        return Evaluate.name

    def run(self, experts: LocalExperts) -> dict[str, Any]:
        """See `Evaluation.plain`."""
        return experts.evaluate(self.recipe, self.role).plain()


@dataclass(frozen=True)
class Race(Measure):
    """`Measure` that ends early where the candidate cannot win; see `prediction/racing.py`."""

    name = "race"
    metric: str
    """Accuracy that candidates are compared by."""
    bar: float | None = None
    """The best value of a candidate that was evaluated on all rows."""
    confidence: float | None = None
    """Probability with which the best candidate is not stopped; None: it is never stopped."""
    seed: int = 0
    """Of the order of rows, with a confidence."""

    def run(self, experts: LocalExperts) -> dict[str, Any]:
        """See `LocalExperts.race`. A stopped candidate has no metrics, and the field `stopped`."""
        from actors.experts.prediction.racing import Terms  # late: see above

        terms = Terms(self.metric, self.bar, self.confidence, self.seed)
        found, standing = experts.race(self.recipe, self.role, terms)
        if found.scores:
            return found.plain()
        tasks = experts.tasks(self.recipe, self.role)
        stopped = {
            "metric": self.metric,
            "best": self.bar,
            "at_most": standing.at_most,
            "rows": standing.rows,
            "of": sum(experts.runner.size(task, self.role) for task in tasks),
            "confidence": self.confidence,
        }
        return {**found.plain(), "stopped": stopped}


@dataclass(frozen=True)
class Time(RecipeRequest["Timing"]):
    """Measure the time of a recipe's merge and of one input."""

    name = "time"
    role: str

    def run(self, experts: LocalExperts) -> Timing:
        """See `actors.experts.prediction.timing.timed`."""
        return experts.timed(self.recipe, self.role)


@dataclass(frozen=True)
class Logits(RecipeRequest["dict[str, Tensor]"]):
    """Logits of every task's rows of a role."""

    name = "logits"
    role: str

    def run(self, experts: LocalExperts) -> dict[str, Tensor]:
        """See `LocalExperts.logits`."""
        return experts.logits(self.recipe, self.role)


@dataclass(frozen=True)
class Merge(RecipeRequest["dict[str, Tensor]"]):
    """The merged state dict of a recipe."""

    name = "merge"

    def run(self, experts: LocalExperts) -> dict[str, Tensor]:
        """See `LocalExperts.merge`."""
        return experts.merge(self.recipe)


@dataclass(frozen=True)
class Statistics(RecipeRequest[tuple[str, ...]]):
    """Compute the statistics of data that a recipe's method needs, and return their keys."""

    name = "statistics"

    def run(self, experts: LocalExperts) -> tuple[str, ...]:
        """See `LocalExperts.statistics`."""
        return experts.statistics(self.recipe)


@dataclass(frozen=True)
class Running(RecipeRequest["dict[str, Tensor]"]):
    """The running statistics of the batch norm of a recipe's model."""

    name = "batch norm"

    def run(self, experts: LocalExperts) -> dict[str, Tensor]:
        """See `LocalExperts.running`."""
        return experts.running(self.recipe)


@dataclass(frozen=True)
class Train(RecipeRequest["tuple[bytes, list[dict[str, float]]]"]):
    """Run the steps [first, last) of a method whose parameters are stored in the shards."""

    name, learns = "train", True
    state: bytes | None
    first: int
    last: int
    seed: int

    def run(self, experts: LocalExperts) -> tuple[bytes, list[dict[str, float]]]:
        """See `LocalExperts.train`."""
        return experts.train(self.recipe, self.state, self.first, self.last, self.seed)


@dataclass(frozen=True)
class Fit(RecipeRequest["tuple[bytes, dict[str, float]]"]):
    """Fit a classifier of embeddings for every task."""

    name, learns = "fit", True

    def run(self, experts: LocalExperts) -> tuple[bytes, dict[str, float]]:
        """See `LocalExperts.fit`."""
        return experts.fit(self.recipe)


@dataclass(frozen=True)
class Gradients(Request["list[Gradient]"]):
    """Losses of micro-batches of a role's rows, and their gradients by coding."""

    name, learns = "gradients", True
    micro_batches: Sequence[MicroBatch]
    role: str
    trim: Trim

    def run(self, experts: LocalExperts) -> list[Gradient]:
        """See `LocalExperts.gradients`."""
        return experts.gradients(self.micro_batches, self.role, self.trim)


@dataclass(frozen=True)
class ExpertScores(Request[dict[str, dict[str, dict[str, float]]]]):
    """Score base and experts on every task's rows of a role."""

    name = "expert scores"
    role: str

    def run(self, experts: LocalExperts) -> dict[str, dict[str, dict[str, float]]]:
        """See `LocalExperts.expert_scores`."""
        return experts.expert_scores(self.role)


@dataclass(frozen=True)
class GramMatrix(Request["Gram"]):
    """Inner products of the task vectors."""

    name = "gram"

    def run(self, experts: LocalExperts) -> Gram:
        """See `LocalExperts.gram`."""
        return experts.gram()


@dataclass(frozen=True)
class Embed(Request[None]):
    """Fill the cache with one expert's embeddings of every task's rows of a role."""

    name = "embed"
    expert: str
    role: str

    @property
    def subject(self) -> str:
        """The expert."""
        return self.expert

    def run(self, experts: LocalExperts) -> None:
        """See `LocalExperts.embed`."""
        experts.embed(self.expert, self.role)
