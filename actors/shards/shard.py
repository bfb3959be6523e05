"""A shard: a block of consecutive segments of base and all task vectors, in one process.

A plain class. Every call carries all its arguments, so a shard that was restarted with nothing but
its weights returns the same bits. State kept between calls only saves time: the resident weights of
the last merge, and the activations of forward passes for their backward passes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint
from actors.cluster.metrics import gauge
from actors.families.protocol import OUTPUT, Activations
from actors.shards.batch_norm import RunningCollector
from actors.shards.block import Block
from actors.shards.in_model_learning import InModelLearning
from actors.shards.messages import Batch as Batch
from actors.shards.messages import Weights as Weights
from actors.shards.resident_model import Blueprint
from actors.shards.statistics import StatisticsCollector
from fusion.logits.head import Head, TaskLoss
from fusion.merged_layers.precision import backward_products, products
from fusion.methods.learned.steps import Gradient
from fusion.registry import METHODS
from fusion.staging import sent
from fusion.task_vectors.coding import check_coding, leaves
from fusion.task_vectors.gram import Gram, gram
from fusion.task_vectors.sharded_reduce import Survey
from fusion.task_vectors.sparsify import trim_survey
from fusion.task_vectors.task_vectors import StateDict, TaskVectors, accumulator


@dataclass
class Context:
    """A forward pass, kept for its backward pass."""

    inputs: Activations
    columns: dict[str, Tensor]
    outputs: Activations


class Shard(Block):
    """A block with surveys, forward and backward passes, statistics and in-model training."""

    def __init__(
        self,
        base: Checkpoint | Blueprint,
        vectors: TaskVectors,
        heads: Mapping[str, Tensor | Head],
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        block: tuple[int, int] | None = None,
        contexts: int = 1,
        places: Mapping[str, Path] | None = None,
        references: Mapping[str, StateDict] | None = None,
    ) -> None:
        """Build the shard; see `Block` for the other arguments.

        Args:
            contexts: number of forward passes kept for their backward passes; older ones are
                computed again.
        """
        super().__init__(base, vectors, heads, device, dtype, block, places, references)
        self.collector = StatisticsCollector(self)
        self.running = RunningCollector(self)
        self.in_model = InModelLearning(self)
        self.capacity = contexts
        self.contexts: OrderedDict[str, Context] = OrderedDict()
        self.passes: tuple[str, int, Survey[Any] | None] = ("", 0, None)
        """The running survey: key of its weights, number of answers it has received, generator."""

    # ---------------------------------------------------------------- surveys and resident weights

    def survey(self, weights: Weights, answers: list[Tensor]) -> tuple[bool, Any]:
        """The next question of a survey, given all answers so far: (finished, question or result).

        Continues the generator of the last call if it belongs to this survey; otherwise runs the
        survey again from its start.
        """
        key, heard, passes = self.passes
        unheard: list[Any] = answers[-1:]
        if passes is None or key != weights.key or heard != len(answers) - 1:
            passes, unheard = self.start_survey(weights), [None, *answers]  # None starts it
        self.passes = ("", 0, None)
        try:
            for answer in unheard:
                question = passes.send(answer)
        except StopIteration as stop:
            return True, stop.value
        self.passes = (weights.key, len(answers), passes)
        return False, question

    def start_survey(self, weights: Weights) -> Survey[Any]:
        """The survey of a method or of a trim."""
        if weights.method is None:
            return trim_survey(self.counted, weights.trim)
        row = METHODS[weights.method]
        return row.start_survey(self.counted, self.inputs(weights), **(weights.params or {}))

    def gram(self) -> Gram:
        """Inner products of this block's task vectors."""
        return gram(self.counted)

    # ------------------------------------------------------------------------------ forward passes

    def run(self, activations: Activations | Batch, weights: Weights) -> Activations:
        """Run the resident model with `weights` merged into it.

        Raises:
            ValueError: a model with batch norm, of unknown statistics: a bug of the caller.
        """
        if self.resident.running and weights.running is None:
            raise ValueError("weights without running statistics of batch norm")
        self.fill(weights)
        with products(weights.precision, self.device):
            return self.resident.run(self.to_device(activations))

    def run_coded(self, activations: Activations | Batch, weights: Weights) -> Activations:
        """Run layers merged by a coding of one row, or of one row per sample; no gradients."""
        with torch.inference_mode():
            return self.chained(
                self.to_device(activations), weights, self.columns(activations, weights)
            )

    def forward(self, key: str, activations: Activations | Batch, weights: Weights) -> Activations:
        """As `run_coded`; keeps under `key` what `backward` needs."""
        context = self.record(activations, weights)
        self.contexts[key] = context
        while len(self.contexts) > self.capacity:
            self.contexts.popitem(last=False)
        gauge("activations", len(self.contexts))
        return {name: value.detach() for name, value in context.outputs.items()}

    def backward(
        self, key: str, activations: Activations | Batch, weights: Weights, gradient: Activations
    ) -> tuple[Tensor, Activations]:
        """(∂L/∂coding of this block's tensors [M, T, G_block], ∂L/∂activations).

        `activations` and `weights` are those of the forward pass, which runs again if it was not
        kept.
        """
        context = self.contexts.pop(key, None) or self.record(activations, weights)
        gauge("activations", len(self.contexts))
        outputs = [context.outputs[name] for name in gradient]
        with backward_products(weights.precision):
            torch.autograd.backward(outputs, [value.to(self.device) for value in gradient.values()])
        coding, back = self.gradients(context)
        return coding.cpu(), back

    def finish(
        self, activations: Activations | Batch, weights: Weights, batch: Batch
    ) -> tuple[tuple[dict[str, float], float], Tensor, Activations]:
        """Both passes of the last shard: ((losses, ∂L/∂β), ∂L/∂coding, ∂L/∂activations)."""
        context = self.record(activations, weights)
        embedding = context.outputs[OUTPUT]
        embedding = embedding.to(accumulator(embedding.dtype))
        beta = torch.full((), batch.beta, dtype=embedding.dtype, device=self.device)
        beta.requires_grad_()
        parts = [(task, len(rows)) for task, _, rows in batch.parts]
        labels = None if batch.labels is None else sent(batch.labels, self.device)
        losses = TaskLoss(self.heads)(embedding, parts, labels, beta)
        with backward_products(weights.precision):
            torch.autograd.backward([losses.sum()])
        coding, back = self.gradients(context)
        losses, tilt, coding = to_host(losses.detach(), zeros_or(beta), coding)
        found = dict(zip([task for task, _, _ in batch.parts], losses.tolist(), strict=True))
        return (found, tilt.item()), coding, back

    def record(self, activations: Activations | Batch, weights: Weights) -> Context:
        """Forward pass with autograd on, from detached inputs."""
        inputs = {
            name: value.detach().requires_grad_(value.is_floating_point())
            for name, value in self.to_device(activations).items()
        }
        columns = self.columns(activations, weights)
        with torch.enable_grad():
            return Context(inputs, columns, self.chained(inputs, weights, columns))

    def gradients(self, context: Context) -> tuple[Tensor, Activations]:
        """Gradients of the coding and of the inputs of a context."""
        columns = [zeros_or(column) for column in context.columns.values()]
        coding = torch.stack(columns, dim=2) if columns else torch.zeros(1, 0, 0)
        return coding, {
            name: zeros_or(value) for name, value in context.inputs.items() if value.requires_grad
        }

    def chained(
        self, activations: Activations, weights: Weights, columns: Mapping[str, Tensor]
    ) -> Activations:
        """Run the merged segments."""
        self.mixer.vectors = self.trimmed(weights)
        rows = len(next(iter(activations.values())))
        mixed = self.mixer.with_columns(columns, rows)
        with mixed, products(weights.precision, self.device):
            for module in self.merged:
                activations = module(activations)
        return activations

    def columns(self, activations: Activations | Batch, weights: Weights) -> dict[str, Tensor]:
        """The coding's columns for this block's tensors, as leaves of autograd.

        Raises:
            InputError: the coding's shape fits neither the task vectors nor the batch.
        """
        assert weights.coding is not None
        size = (
            activations.size
            if isinstance(activations, Batch)
            else len(next(iter(activations.values())))
        )
        check_coding(weights.coding, len(self.vectors.tasks), len(self.vectors.groups), size)
        coding = sent(weights.coding, self.device)
        return leaves(self.names(), self.vectors.groups, coding)


def zeros_or(leaf: Tensor) -> Tensor:
    """A leaf's gradient; zeros if it has none."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def to_host(*tensors: Tensor) -> list[Tensor]:
    """The tensors on the CPU, by one copy: the host waits for a GPU once."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return list(tensors)
    joined = torch.cat([tensor.reshape(-1) for tensor in tensors]).cpu()
    parts = torch.split(joined, [tensor.numel() for tensor in tensors])
    return [
        part.view(tensor.shape).to(tensor.dtype)
        for part, tensor in zip(parts, tensors, strict=True)
    ]


def gradient_of(
    losses: Mapping[str, float], coding: Tensor, grouped: bool, beta: float = 0.0
) -> Gradient:
    """A micro-batch's gradient, from the columns' gradients [M, T, G]; summed over G if G = 1."""
    return Gradient(dict(losses), coding if grouped else coding.sum(2, keepdim=True), beta)
