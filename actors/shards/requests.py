"""Requests to a shard: one frozen dataclass for each call, with the coordinator's arguments.

Results of earlier calls (activations, gradients) are passed beside the request, in the link's form:
on Ray they are references, which Ray resolves only if they are separate arguments. A shard runs a
request by `run(shard, *given)`; `LocalLink` calls it in this process, `ShardActor` on Ray.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from actors.families.protocol import Activations
from actors.shards.messages import Batch, Weights
from actors.shards.shard import Shard
from fusion.merged_layers.precision import Precision
from fusion.task_vectors.gram import Gram


class ShardRequest(ABC):
    """One call of a shard."""

    name: ClassVar[str]
    """Name of the call, in Ray's task names."""
    returns: ClassVar[int] = 1
    """Number of results, which are fetched separately."""
    returns_activations: ClassVar[bool] = False
    """Whether the last result is activations or their gradients, which may stay on the device."""

    @abstractmethod
    def run(self, shard: Shard, *given: Any, **_: Any) -> Any:
        """Run the call; `given`: results of earlier calls."""


# ------------------------------------------------------------------------------ weights and surveys


@dataclass(frozen=True)
class Survey(ShardRequest):
    """The next question of a survey, or its result."""

    name = "survey"
    weights: Weights
    answers: list[Tensor]

    def run(self, shard: Shard) -> tuple[bool, Any]:
        """See `Shard.survey`."""
        return shard.survey(self.weights, self.answers)


@dataclass(frozen=True)
class MergeBlock(ShardRequest):
    """The merged tensors of the block, on the CPU."""

    name = "merge"
    weights: Weights

    def run(self, shard: Shard) -> dict[str, Tensor]:
        """See `Shard.merge`."""
        return {name: tensor.cpu() for name, tensor in shard.merge(self.weights).items()}


@dataclass(frozen=True)
class BlockGram(ShardRequest):
    """Inner products of the block's task vectors."""

    name = "gram"

    def run(self, shard: Shard) -> Gram:
        """See `Shard.gram`."""
        return shard.gram()


# ------------------------------------------------------------------------------------------- passes


@dataclass(frozen=True)
class RunResident(ShardRequest):
    """Run a batch through the resident model."""

    name, returns_activations = "run", True
    weights: Weights

    def run(self, shard: Shard, activations: Activations | Batch) -> Activations:
        """See `Shard.run`."""
        return shard.run(activations, self.weights)


@dataclass(frozen=True)
class RunCoded(ShardRequest):
    """Run a batch through layers merged with the batch's own coding."""

    name, returns_activations = "code", True
    weights: Weights

    def run(self, shard: Shard, activations: Activations | Batch) -> Activations:
        """See `Shard.run_coded`."""
        return shard.run_coded(activations, self.weights)


@dataclass(frozen=True)
class Forward(ShardRequest):
    """Forward pass, kept for its backward pass."""

    name, returns_activations = "forward", True
    key: str
    weights: Weights

    def run(self, shard: Shard, activations: Activations | Batch) -> Activations:
        """See `Shard.forward`."""
        return shard.forward(self.key, activations, self.weights)


@dataclass(frozen=True)
class Backward(ShardRequest):
    """Backward pass: (∂L/∂coding, ∂L/∂activations)."""

    name, returns, returns_activations = "backward", 2, True
    key: str
    weights: Weights

    def run(
        self, shard: Shard, activations: Activations | Batch, gradient: Activations
    ) -> tuple[Tensor, Activations]:
        """See `Shard.backward`."""
        return shard.backward(self.key, activations, self.weights, gradient)


@dataclass(frozen=True)
class Finish(ShardRequest):
    """Both passes of the last shard: ((losses, ∂/∂β), ∂L/∂coding, ∂L/∂activations)."""

    name, returns, returns_activations = "finish", 3, True
    weights: Weights
    batch: Batch

    def run(self, shard: Shard, activations: Activations | Batch) -> Any:
        """See `Shard.finish`."""
        return shard.finish(activations, self.weights, self.batch)


# ------------------------------------------------------------------------------- statistics of data


@dataclass(frozen=True)
class MissingStatistics(ShardRequest):
    """Keys of which this node has no complete, undamaged files."""

    name = "gather"
    keys: list[str]

    def run(self, shard: Shard) -> list[str]:
        """See `StatisticsCollector.lacking`."""
        return shard.collector.lacking(self.keys)


@dataclass(frozen=True)
class GramForward(ShardRequest):
    """Run batch `at` through an expert; adds to the Gram matrices of its linear layers' inputs."""

    name = "gather"
    at: int
    weights: Weights
    norms: bool = False
    """Whether statistics of norm layers are collected too."""

    def run(self, shard: Shard, activations: Activations | Batch) -> Activations:
        """See `StatisticsCollector.gram_forward`."""
        return shard.collector.gram_forward(self.at, activations, self.weights, self.norms)


@dataclass(frozen=True)
class RunningForward(ShardRequest):
    """Run batch `at` through a merged model whose batch norm is measured."""

    name = "gather"
    at: int
    weights: Weights

    def run(self, shard: Shard, activations: Activations | Batch) -> Activations:
        """See `RunningCollector.forward`."""
        return shard.running.forward(self.at, activations, self.weights)


@dataclass(frozen=True)
class RunningFound(ShardRequest):
    """The running statistics that were measured over `batches` batches under a key."""

    name = "gather"
    key: str
    batches: int

    def run(self, shard: Shard) -> dict[str, Tensor]:
        """See `RunningCollector.found`."""
        return shard.running.found(self.key, self.batches)


@dataclass(frozen=True)
class FisherForward(ShardRequest):
    """Forward pass of batch `at` for the Fisher information (squared gradients)."""

    name = "gather"
    at: int
    key: str
    weights: Weights

    def run(self, shard: Shard, activations: Activations | Batch) -> Activations:
        """See `StatisticsCollector.fisher_forward`."""
        return shard.collector.fisher_forward(self.at, self.key, activations, self.weights)


@dataclass(frozen=True)
class FisherFinish(ShardRequest):
    """Backward passes of the last shard for the Fisher information."""

    name = "gather"
    key: str
    task: str
    estimate: str
    seed: int

    def run(self, shard: Shard) -> Activations:
        """See `StatisticsCollector.fisher_finish`."""
        return shard.collector.fisher_finish(self.key, self.task, self.estimate, self.seed)


@dataclass(frozen=True)
class FisherBackward(ShardRequest):
    """Backward passes of another shard for the Fisher information."""

    name = "gather"
    key: str
    images: int

    def run(self, shard: Shard, gradient: Activations) -> Activations:
        """See `StatisticsCollector.fisher_backward`."""
        return shard.collector.fisher_backward(self.key, self.images, gradient)


@dataclass(frozen=True)
class WriteStatistics(ShardRequest):
    """Write the statistics collected over `batches` batches under a key."""

    name = "gather"
    key: str
    batches: int

    def run(self, shard: Shard) -> None:
        """See `StatisticsCollector.write_all`."""
        shard.collector.write_all(self.key, self.batches)


@dataclass(frozen=True)
class AdvancePrefix(ShardRequest):
    """Collect statistics of experts behind merged segments, segment by segment."""

    name = "gather"
    keys: list[str]
    method: str
    params: dict[str, Any]

    def run(
        self, shard: Shard, inputs: Sequence[Sequence[Activations | Batch]]
    ) -> list[list[Activations]]:
        """See `StatisticsCollector.advance`."""
        return shard.collector.advance(self.keys, self.method, self.params, inputs)


# -------------------------------------------------------------------------------- in-model training


@dataclass(frozen=True)
class TrainingRequest(ShardRequest):
    """A call of one training whose parameters are in the shards; `key` identifies the training."""

    name = "reside"
    key: str


@dataclass(frozen=True)
class BeginTraining(TrainingRequest):
    """Start a training with initial parameters; returns their names."""

    method: str
    params: dict[str, Any]
    seed: int
    precision: Precision

    def run(self, shard: Shard) -> list[str]:
        """See `InModelLearning.begin`."""
        return shard.in_model.begin(self.key, self.method, self.params, self.seed, self.precision)


@dataclass(frozen=True)
class LoadTraining(TrainingRequest):
    """Load parameters and moments of the state after `steps` steps."""

    tensors: Mapping[str, Tensor]
    steps: int

    def run(self, shard: Shard) -> None:
        """See `InModelLearning.load`."""
        shard.in_model.load(self.key, self.tensors, self.steps)


@dataclass(frozen=True)
class PrepareStep(TrainingRequest):
    """Make the weights for the passes of a step."""

    step: int
    phase: str
    columns: Any

    def run(self, shard: Shard) -> None:
        """See `InModelLearning.prepare`."""
        shard.in_model.prepare(self.key, self.step, self.phase, self.columns)


@dataclass(frozen=True)
class TrainingForward(TrainingRequest):
    """Forward pass of a training, kept for its backward pass."""

    item: str
    lessons: int
    """Tasks in the pass."""

    def run(self, shard: Shard, activations: Activations | Batch) -> Activations:
        """See `InModelLearning.forward`."""
        return shard.in_model.forward(self.key, self.item, activations, self.lessons)


@dataclass(frozen=True)
class TrainingFinish(TrainingRequest):
    """Both passes of the last shard: (task -> loss, ∂L/∂activations)."""

    returns = 2
    item: str
    batch: Batch

    def run(self, shard: Shard, activations: Activations) -> Any:
        """See `InModelLearning.finish`."""
        return shard.in_model.finish(self.key, self.item, activations, self.batch)


@dataclass(frozen=True)
class TrainingBackward(TrainingRequest):
    """Backward pass of another shard: ∂L/∂activations."""

    item: str

    def run(self, shard: Shard, gradient: Activations) -> Activations:
        """See `InModelLearning.backward`."""
        return shard.in_model.backward(self.key, self.item, gradient)


@dataclass(frozen=True)
class AddGradients(TrainingRequest):
    """Add the shard's gradients of a router shared by all blocks to a total."""

    def run(self, shard: Shard, total: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """See `InModelLearning.add`."""
        return shard.in_model.add(self.key, total)


@dataclass(frozen=True)
class UpdateParameters(TrainingRequest):
    """One step of the optimiser."""

    def run(self, shard: Shard, total: Mapping[str, Tensor] | None) -> None:
        """See `InModelLearning.update`."""
        shard.in_model.update(self.key, total)


@dataclass(frozen=True)
class CoefficientGradients(TrainingRequest):
    """∂L/∂coefficients of the block's tensors."""

    def run(self, shard: Shard) -> Tensor:
        """See `InModelLearning.columns`."""
        return shard.in_model.columns(self.key)


@dataclass(frozen=True)
class TrainingTensors(TrainingRequest):
    """Parameters and moments."""

    def run(self, shard: Shard) -> dict[str, Tensor]:
        """See `InModelLearning.tensors`."""
        return shard.in_model.tensors(self.key)


@dataclass(frozen=True)
class EndTraining(TrainingRequest):
    """End a training and drop its parameters."""

    def run(self, shard: Shard) -> None:
        """See `InModelLearning.drop`."""
        shard.in_model.drop(self.key)


@dataclass(frozen=True)
class RunRouted(ShardRequest):
    """Run a batch through routed MLPs, by the routers in the weights."""

    name = "reside"
    weights: Weights

    def run(self, shard: Shard, activations: Activations | Batch) -> Activations:
        """See `InModelLearning.route`."""
        return shard.in_model.route(activations, self.weights)
