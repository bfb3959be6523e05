"""Training and evaluation of parameters that a block holds: WE-MoE routers, Concrete masks.

A block holds them for the length of one call of `Experts.train` or of one evaluation: the call
brings them and takes them away. A shard that was restarted in the middle of a call raises
`Forgotten`; the call is then repeated from its start, with the same bits.
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
from fusion.methods.learned.in_model import ResidentCourse, RouterOptions
from fusion.methods.learned.steps import Shape
from fusion.registry import METHODS, Resident
from fusion.task_vectors.sparse import pruned
from fusion.task_vectors.task_vectors import TaskVectors, accumulator

RUNS = 2
"""Calls that are under way at a time: a coordinator takes as many."""


@dataclass
class Run:
    """One call that learns."""

    learner: Routers | Masks
    waiting: dict[str, tuple[Activations, Activations]] = field(default_factory=dict)
    """Forward passes that wait for their backward passes: inputs and outputs."""


class Residing:
    """The calls under way that train parameters in one block, and the routers being evaluated."""

    def __init__(self, block: Block) -> None:
        """Nothing under way."""
        self.block = block
        self.runs: OrderedDict[str, Run] = OrderedDict()
        self.opened: tuple[str, Routers | None] = ("", None)
        self.kept: tuple[float, TaskVectors] | None = None

    def course(self, method: str, params: Mapping[str, Any]) -> ResidentCourse:
        """What a method learns."""
        row, vectors = METHODS[method], self.block.vectors
        assert isinstance(row, Resident)
        return row.course(Shape(vectors.tasks, vectors.groups), **params)

    def run(self, key: str) -> Run:
        """A call that is under way.

        Raises:
            Forgotten: it is not known here.
        """
        if key not in self.runs:
            raise Forgotten(f"no call {key} under way")
        return self.runs[key]

    def pruned(self, quantile: float | None) -> TaskVectors:
        """The MLPs' task vectors; pruned ones are kept, of one quantile at a time."""
        vectors = self.block.vectors
        if quantile is None:
            return vectors
        if self.kept is None or self.kept[0] != quantile:
            self.kept = None  # let go of the old before making the new
            with torch.inference_mode(False), torch.no_grad():
                self.kept = (quantile, pruned(vectors, self.mlp_names(), quantile))
        return self.kept[1]

    def mlp_names(self) -> list[str]:
        """The fused tensors of MLPs."""
        inside = set(mlp_names(self.block.encoder.chain))
        return [name for name in self.block.vectors.deltas if name in inside]

    def routers(self, course: ResidentCourse, pooled: bool) -> Routers:
        """Routers at the beginning."""
        assert isinstance(course.options, RouterOptions)
        vectors = self.pruned(course.options.prune)
        with torch.inference_mode(False):
            return Routers(self.block, course, vectors, pooled)

    # -------------------------------------------------------------------------------- learning

    def begin(self, key: str, method: str, params: Mapping[str, Any], seed: int) -> list[str]:
        """Parameters at the beginning; their names."""
        course = self.course(method, params)
        options = course.options
        learner: Routers | Masks
        if isinstance(options, RouterOptions):
            learner = self.routers(course, options.batch_mean)
        else:
            learner = Masks(self.block, course, seed)
        self.runs[key] = Run(learner)
        while len(self.runs) > RUNS:
            self.runs.popitem(last=False)  # of a caller that died
        return list(learner.adam.parameters)

    def load(self, key: str, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Parameters and moments after that many steps."""
        self.run(key).learner.load(tensors, steps)

    def prepare(self, key: str, step: int, phase: str, columns: Any) -> None:
        """Weights for the passes that follow; see `Routers.prepare` and `Masks.prepare`."""
        self.run(key).learner.prepare(step, phase, columns)

    def forward(self, key: str, item: str, carry: Activations | Batch) -> Activations:
        """A forward pass, kept for its backward pass."""
        outputs = self.passed(key, item, carry)
        return {name: value.detach() for name, value in outputs.items()}

    def finish(self, key: str, item: str, carry: Activations, batch: Batch) -> Any:
        """Forward, losses and backward of the last shard: (task -> loss, ∂/∂carry)."""
        embedding = self.passed(key, item, carry)[OUTPUT]
        embedding = embedding.to(accumulator(embedding.dtype))
        parts = [(task, len(rows)) for task, _, rows in batch.parts]
        stacked = TaskLoss(self.block.heads)(embedding, parts)
        torch.autograd.backward([stacked.sum()])
        names = [task for task, _, _ in batch.parts]
        found = dict(zip(names, stacked.tolist(), strict=True))  # the host waits once
        return found, self.leave(key, item)

    def backward(self, key: str, item: str, gradient: Activations) -> Activations:
        """The backward pass of another shard: ∂/∂carry."""
        _, outputs = self.waiting(key, item)
        live = [name for name in gradient if outputs[name].requires_grad]
        if live:
            torch.autograd.backward(
                [outputs[name] for name in live],
                [gradient[name].to(self.block.device) for name in live],
            )
        return self.leave(key, item)

    def passed(self, key: str, item: str, carry: Activations | Batch) -> Activations:
        """A forward pass with autograd on, from fresh leaves."""
        run = self.run(key)
        inputs = {
            name: value.detach().requires_grad_(value.is_floating_point())
            for name, value in self.block.entered(carry).items()
        }
        with torch.inference_mode(False), torch.enable_grad():
            outputs = run.learner.run(inputs)
        run.waiting[item] = (inputs, outputs)
        return outputs

    def waiting(self, key: str, item: str) -> tuple[Activations, Activations]:
        """A pass that waits.

        Raises:
            Forgotten: it is not known here.
        """
        run = self.run(key)
        if item not in run.waiting:
            raise Forgotten(f"no pass {item} of call {key}")
        return run.waiting[item]

    def leave(self, key: str, item: str) -> Activations:
        """∂/∂carry of a pass, which is then forgotten."""
        inputs, _ = self.waiting(key, item)
        del self.run(key).waiting[item]
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
        """One step; see `Routers.update` and `Masks.update`."""
        self.run(key).learner.update(total)

    def tensors(self, key: str) -> dict[str, Tensor]:
        """Parameters and moments."""
        return self.run(key).learner.adam.tensors()

    def drop(self, key: str) -> None:
        """Forget a call."""
        run = self.runs.pop(key, None)
        if run is not None and isinstance(run.learner, Masks):
            run.learner.gradients()

    # ------------------------------------------------------------------------------ evaluation

    def route(self, carry: Activations | Batch, weights: Weights) -> Activations:
        """Through routed MLPs, by the routers that the weights bring; no gradients."""
        assert weights.method is not None
        assert weights.learned is not None
        if self.opened[0] != weights.key or self.opened[1] is None:
            self.opened = ("", None)
            course = self.course(weights.method, weights.params or {})
            assert isinstance(course.options, RouterOptions)
            routers = self.routers(course, course.options.together > 0)
            routers.load(weights.learned.open(), 0)
            self.opened = (weights.key, routers)
        routed = self.opened[1]
        assert routed is not None
        self.block.fill(resident_weights(routed.course.scale))
        with torch.inference_mode():
            return routed.run(self.block.entered(carry))
