"""Requests to a shard: one frozen dataclass a call, with the arguments that the coordinator has.

Results of earlier calls (activations, gradients) are given beside the request, as a link hands them
on: on Ray they are references, which Ray resolves only where they are arguments of their own. A
shard runs a request by `run(shard, *given)`; in this process `Direct` does so, on Ray `ShardActor`.
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
from fusion.task_vectors.gram import Gram


class ShardRequest(ABC):
    """One call of a shard."""

    name: ClassVar[str]
    """Of the call: in Ray's task names."""
    returns: ClassVar[int] = 1
    """Number of results; they are fetched apart from each other."""
    carries: ClassVar[bool] = False
    """Whether the (last) result is activations or their gradients, which may stay on the device."""

    @abstractmethod
    def run(self, shard: Shard, *given: Any, **_: Any) -> Any:
        """Carry out the call; `given`: results of earlier calls."""


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
    """A batch through the resident model."""

    name, carries = "run", True
    weights: Weights

    def run(self, shard: Shard, carry: Activations | Batch) -> Activations:
        """See `Shard.run`."""
        return shard.run(carry, self.weights)


@dataclass(frozen=True)
class RunCoded(ShardRequest):
    """A batch through merged layers, with a coding of its own."""

    name, carries = "code", True
    weights: Weights

    def run(self, shard: Shard, carry: Activations | Batch) -> Activations:
        """See `Shard.code`."""
        return shard.code(carry, self.weights)


@dataclass(frozen=True)
class Forward(ShardRequest):
    """A forward pass whose activations are kept for the backward pass."""

    name, carries = "forward", True
    key: str
    weights: Weights

    def run(self, shard: Shard, carry: Activations | Batch) -> Activations:
        """See `Shard.forward`."""
        return shard.forward(self.key, carry, self.weights)


@dataclass(frozen=True)
class Backward(ShardRequest):
    """The backward pass of a forward pass: (∂L/∂coding, ∂L/∂carry)."""

    name, returns, carries = "backward", 2, True
    key: str
    weights: Weights

    def run(
        self, shard: Shard, carry: Activations | Batch, gradient: Activations
    ) -> tuple[Tensor, Activations]:
        """See `Shard.backward`."""
        return shard.backward(self.key, carry, self.weights, gradient)


@dataclass(frozen=True)
class Finish(ShardRequest):
    """Both passes of the last shard: ((losses, ∂/∂β), ∂L/∂coding, ∂L/∂carry)."""

    name, returns, carries = "finish", 3, True
    weights: Weights
    batch: Batch

    def run(self, shard: Shard, carry: Activations | Batch) -> Any:
        """See `Shard.finish`."""
        return shard.finish(carry, self.weights, self.batch)


# ------------------------------------------------------------------------------- statistics of data


@dataclass(frozen=True)
class MissingStatistics(ShardRequest):
    """Those of these keys that this node has no sound files of."""

    name = "gather"
    keys: list[str]

    def run(self, shard: Shard) -> list[str]:
        """See `Gathering.lacking`."""
        return shard.gathering.lacking(self.keys)


@dataclass(frozen=True)
class ObserveBatch(ShardRequest):
    """Batch `at` through an expert; Gram matrices of what its linear layers read are added up."""

    name = "gather"
    at: int
    weights: Weights

    def run(self, shard: Shard, carry: Activations | Batch) -> Activations:
        """See `Gathering.observe`."""
        return shard.gathering.observe(self.at, carry, self.weights)


@dataclass(frozen=True)
class ProbeBatch(ShardRequest):
    """The forward pass of batch `at`, whose gradients will be squared (Fisher information)."""

    name = "gather"
    at: int
    key: str
    weights: Weights

    def run(self, shard: Shard, carry: Activations | Batch) -> Activations:
        """See `Gathering.probe`."""
        return shard.gathering.probe(self.at, self.key, carry, self.weights)


@dataclass(frozen=True)
class JudgeBatch(ShardRequest):
    """The backward passes of the last shard for a probed batch."""

    name = "gather"
    key: str
    task: str
    estimate: str
    seed: int

    def run(self, shard: Shard) -> Activations:
        """See `Gathering.judge`."""
        return shard.gathering.judge(self.key, self.task, self.estimate, self.seed)


@dataclass(frozen=True)
class RecoilBatch(ShardRequest):
    """The backward passes of another shard for a probed batch."""

    name = "gather"
    key: str
    images: int

    def run(self, shard: Shard, gradient: Activations) -> Activations:
        """See `Gathering.recoil`."""
        return shard.gathering.recoil(self.key, self.images, gradient)


@dataclass(frozen=True)
class ConcludeStatistics(ShardRequest):
    """Write what was added up under a key, of that many batches."""

    name = "gather"
    key: str
    batches: int

    def run(self, shard: Shard) -> None:
        """See `Gathering.conclude`."""
        shard.gathering.conclude(self.key, self.batches)


@dataclass(frozen=True)
class AdvancePrefix(ShardRequest):
    """Statistics of experts behind merged prefixes, segment by segment."""

    name = "gather"
    keys: list[str]
    method: str
    params: dict[str, Any]

    def run(
        self, shard: Shard, carries: Sequence[Sequence[Activations | Batch]]
    ) -> list[list[Activations]]:
        """See `Gathering.advance`."""
        return shard.gathering.advance(self.keys, self.method, self.params, carries)


# -------------------------------------------------------------------------------- in-model training


@dataclass(frozen=True)
class TrainingRequest(ShardRequest):
    """A call about one training whose parameters are stored in the shards; `key` names it."""

    name = "reside"
    key: str


@dataclass(frozen=True)
class BeginTraining(TrainingRequest):
    """Parameters at the beginning; their names."""

    method: str
    params: dict[str, Any]
    seed: int

    def run(self, shard: Shard) -> list[str]:
        """See `Residing.begin`."""
        return shard.residing.begin(self.key, self.method, self.params, self.seed)


@dataclass(frozen=True)
class LoadTraining(TrainingRequest):
    """Parameters and moments after that many steps."""

    tensors: Mapping[str, Tensor]
    steps: int

    def run(self, shard: Shard) -> None:
        """See `Residing.load`."""
        shard.residing.load(self.key, self.tensors, self.steps)


@dataclass(frozen=True)
class PrepareStep(TrainingRequest):
    """Weights for the passes of a step."""

    step: int
    phase: str
    columns: Any

    def run(self, shard: Shard) -> None:
        """See `Residing.prepare`."""
        shard.residing.prepare(self.key, self.step, self.phase, self.columns)


@dataclass(frozen=True)
class TrainingForward(TrainingRequest):
    """A forward pass that is kept for its backward pass."""

    item: str

    def run(self, shard: Shard, carry: Activations | Batch) -> Activations:
        """See `Residing.forward`."""
        return shard.residing.forward(self.key, self.item, carry)


@dataclass(frozen=True)
class TrainingFinish(TrainingRequest):
    """Both passes of the last shard: (task -> loss, ∂L/∂carry)."""

    returns = 2
    item: str
    batch: Batch

    def run(self, shard: Shard, carry: Activations) -> Any:
        """See `Residing.finish`."""
        return shard.residing.finish(self.key, self.item, carry, self.batch)


@dataclass(frozen=True)
class TrainingBackward(TrainingRequest):
    """The backward pass of another shard: ∂L/∂carry."""

    item: str

    def run(self, shard: Shard, gradient: Activations) -> Activations:
        """See `Residing.backward`."""
        return shard.residing.backward(self.key, self.item, gradient)


@dataclass(frozen=True)
class AddGradients(TrainingRequest):
    """The shard's gradients of routers that all blocks share, added to a total."""

    def run(self, shard: Shard, total: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """See `Residing.add`."""
        return shard.residing.add(self.key, total)


@dataclass(frozen=True)
class UpdateParameters(TrainingRequest):
    """One step of the optimiser."""

    def run(self, shard: Shard, total: Mapping[str, Tensor] | None) -> None:
        """See `Residing.update`."""
        shard.residing.update(self.key, total)


@dataclass(frozen=True)
class CoefficientGradients(TrainingRequest):
    """∂L/∂coefficients of the block's tensors."""

    def run(self, shard: Shard) -> Tensor:
        """See `Residing.columns`."""
        return shard.residing.columns(self.key)


@dataclass(frozen=True)
class TrainingTensors(TrainingRequest):
    """Parameters and moments."""

    def run(self, shard: Shard) -> dict[str, Tensor]:
        """See `Residing.tensors`."""
        return shard.residing.tensors(self.key)


@dataclass(frozen=True)
class EndTraining(TrainingRequest):
    """Forget the training."""

    def run(self, shard: Shard) -> None:
        """See `Residing.drop`."""
        shard.residing.drop(self.key)


@dataclass(frozen=True)
class RunRouted(ShardRequest):
    """A batch through routed MLPs, by the routers that the weights bring."""

    name = "reside"
    weights: Weights

    def run(self, shard: Shard, carry: Activations | Batch) -> Activations:
        """See `Residing.route`."""
        return shard.residing.route(carry, self.weights)
