"""Training and evaluation of parameters inside a block: WE-MoE routers, Concrete masks.

A block holds the parameters only during one call of `Experts.train` or one evaluation: the call
sends them and fetches them back. A shard that was restarted during a call raises `Forgotten`; the
call is then repeated from its start, with the same bits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from actors.artifacts.errors import Forgotten as Forgotten
from actors.families.protocol import OUTPUT, Activations
from actors.shards.block import Block
from actors.shards.masks import Masks
from actors.shards.messages import Batch, Weights
from actors.shards.routers import Routers, mlp_names, resident_weights
from fusion.logits.head import TaskLoss
from fusion.merged_layers.precision import Precision, backward_products, products
from fusion.methods.learned.in_model import InModelPlan, RouterOptions
from fusion.methods.learned.steps import Shape
from fusion.registry import METHODS, InModel
from fusion.task_vectors.sparse import pruned
from fusion.task_vectors.task_vectors import TaskVectors, accumulator

RUNS = 2
"""Most trainings at the same time: the number of calls that a coordinator runs."""


@dataclass
class Run:
    """One running training."""

    learner: Routers | Masks
    precision: Precision = "fp32"
    """Precision of its passes."""
    passes: dict[str, tuple[Activations, Activations]] = field(default_factory=dict)
    """Inputs and outputs of forward passes, kept for their backward passes."""


class InModelLearning:
    """Running trainings of parameters in one block, and the routers being evaluated."""

    def __init__(self, block: Block) -> None:
        """No training is running."""
        self.block = block
        self.runs: OrderedDict[str, Run] = OrderedDict()
        self.opened: tuple[str, Routers | None] = ("", None)
        self.kept: tuple[float, TaskVectors] | None = None

    def plan(self, method: str, params: Mapping[str, Any]) -> InModelPlan:
        """The plan of a method: what it learns, with which options."""
        row, vectors = METHODS[method], self.block.vectors
        assert isinstance(row, InModel)
        return row.plan(Shape(vectors.tasks, vectors.groups), **params)

    def run(self, key: str) -> Run:
        """A running training.

        Raises:
            Forgotten: this process does not know it.
        """
        if key not in self.runs:
            raise Forgotten(f"no call {key} under way")
        return self.runs[key]

    def pruned(self, quantile: float | None) -> TaskVectors:
        """The MLPs' task vectors; pruned ones are cached for one quantile."""
        vectors = self.block.vectors
        if quantile is None:
            return vectors
        if self.kept is None or self.kept[0] != quantile:
            self.kept = None  # free the old ones first
            with torch.inference_mode(False), torch.no_grad():
                self.kept = (quantile, pruned(vectors, self.mlp_names(), quantile))
        return self.kept[1]

    def mlp_names(self) -> list[str]:
        """Names of the fused tensors of MLPs."""
        inside = set(mlp_names(self.block.resident.chain))
        return [name for name in self.block.vectors.deltas if name in inside]

    def routers(self, plan: InModelPlan, pooled: bool) -> Routers:
        """Routers with their initial weights."""
        assert isinstance(plan.options, RouterOptions)
        vectors = self.pruned(plan.options.prune)
        with torch.inference_mode(False):
            return Routers(self.block, plan, vectors, pooled)

    # -------------------------------------------------------------------------------- learning

    def begin(
        self, key: str, method: str, params: Mapping[str, Any], seed: int, precision: Precision
    ) -> list[str]:
        """Start a training with initial parameters; returns their names."""
        plan = self.plan(method, params)
        options = plan.options
        learner: Routers | Masks
        if isinstance(options, RouterOptions):
            learner = self.routers(plan, options.batch_mean)
        else:
            learner = Masks(self.block, plan, seed)
        self.runs[key] = Run(learner, precision)
        while len(self.runs) > RUNS:
            self.runs.popitem(last=False)  # its caller died
        return list(learner.adam.parameters)

    def load(self, key: str, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Load parameters and moments of the state after `steps` steps."""
        self.run(key).learner.load(tensors, steps)

    def prepare(self, key: str, step: int, phase: str, columns: Any) -> None:
        """Make the weights for the next passes; see `Routers.prepare` and `Masks.prepare`."""
        self.run(key).learner.prepare(step, phase, columns)

    def forward(
        self, key: str, item: str, activations: Activations | Batch, lessons: int
    ) -> Activations:
        """Forward pass of equally many rows of each of `lessons`, kept for its backward pass."""
        outputs = self.record_pass(key, item, activations, lessons)
        return {name: value.detach() for name, value in outputs.items()}

    def finish(self, key: str, item: str, activations: Activations, batch: Batch) -> Any:
        """Both passes and losses of the last shard: (task -> loss, ∂L/∂activations)."""
        embedding = self.record_pass(key, item, activations, len(batch.parts))[OUTPUT]
        embedding = embedding.to(accumulator(embedding.dtype))
        parts = [(task, len(rows)) for task, _, rows in batch.parts]
        stacked = TaskLoss(self.block.heads)(embedding, parts)
        with backward_products(self.run(key).precision):
            torch.autograd.backward([stacked.sum()])
        names = [task for task, _, _ in batch.parts]
        found = dict(
            zip(names, stacked.tolist(), strict=True)
        )  # one synchronisation with the device
        return found, self.input_gradients(key, item)

    def backward(self, key: str, item: str, gradient: Activations) -> Activations:
        """Backward pass of another shard: ∂L/∂activations."""
        _, outputs = self.kept_pass(key, item)
        live = [name for name in gradient if outputs[name].requires_grad]
        if live:
            with backward_products(self.run(key).precision):
                torch.autograd.backward(
                    [outputs[name] for name in live],
                    [gradient[name].to(self.block.device) for name in live],
                )
        return self.input_gradients(key, item)

    def record_pass(
        self, key: str, item: str, activations: Activations | Batch, lessons: int
    ) -> Activations:
        """Forward pass with autograd on, from detached inputs."""
        run = self.run(key)
        inputs = {
            name: value.detach().requires_grad_(value.is_floating_point())
            for name, value in self.block.to_device(activations).items()
        }
        precision = products(run.precision, self.block.device)
        with torch.inference_mode(False), torch.enable_grad(), precision:
            outputs = run.learner.run(inputs, lessons)
        run.passes[item] = (inputs, outputs)
        return outputs

    def kept_pass(self, key: str, item: str) -> tuple[Activations, Activations]:
        """Inputs and outputs of a forward pass.

        Raises:
            Forgotten: this process does not know it.
        """
        run = self.run(key)
        if item not in run.passes:
            raise Forgotten(f"no pass {item} of call {key}")
        return run.passes[item]

    def input_gradients(self, key: str, item: str) -> Activations:
        """∂L/∂activations of a pass, which is then dropped."""
        inputs, _ = self.kept_pass(key, item)
        del self.run(key).passes[item]
        return {
            name: torch.zeros_like(value) if value.grad is None else value.grad
            for name, value in inputs.items()
            if value.requires_grad
        }

    def add(self, key: str, total: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """See `Routers.add`."""
        learner = self.run(key).learner
        assert isinstance(learner, Routers)
        return learner.add(total)

    def columns(self, key: str) -> Tensor:
        """See `Masks.columns`."""
        learner = self.run(key).learner
        assert isinstance(learner, Masks)
        return learner.columns()

    def update(self, key: str, total: Mapping[str, Tensor] | None) -> None:
        """One optimiser step; see `Routers.update` and `Masks.update`."""
        self.run(key).learner.update(total)

    def tensors(self, key: str) -> dict[str, Tensor]:
        """Parameters and moments by name."""
        return self.run(key).learner.adam.tensors()

    def drop(self, key: str) -> None:
        """End a training and drop its parameters."""
        run = self.runs.pop(key, None)
        if run is not None and isinstance(run.learner, Masks):
            run.learner.gradients()

    # ------------------------------------------------------------------------------ evaluation

    def route(self, activations: Activations | Batch, weights: Weights) -> Activations:
        """Run the block with routed MLPs, by the routers in `weights`; no gradients."""
        assert weights.method is not None
        assert weights.learned is not None
        if self.opened[0] != weights.key or self.opened[1] is None:
            self.opened = ("", None)
            plan = self.plan(weights.method, weights.params or {})
            assert isinstance(plan.options, RouterOptions)
            routers = self.routers(plan, plan.options.together > 0)
            routers.load(weights.learned.open(), 0)
            self.opened = (weights.key, routers)
        routed = self.opened[1]
        assert routed is not None
        self.block.fill(resident_weights(routed.plan.scale))
        with torch.inference_mode(), products(weights.precision, self.block.device):
            return routed.run(self.block.to_device(activations))
