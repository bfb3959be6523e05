"""A shard: a block of consecutive segments of base and all task vectors, in one process.

A plain class. Every call carries all that it needs, so that a shard that died and came back, with
nothing but its weights, answers the same to the bit. What it keeps between calls only saves time:
the resident weights of the last filling, and the activations of forward passes whose backward pass
is to come.
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
from actors.shards.block import Block
from actors.shards.in_model_learning import Residing
from actors.shards.messages import Batch as Batch
from actors.shards.messages import Weights as Weights
from actors.shards.resident_model import Blueprint
from actors.shards.statistics import Gathering
from fusion.logits.head import Head, TaskLoss
from fusion.methods.learned.steps import Gradient
from fusion.registry import METHODS
from fusion.task_vectors.coding import check_coding, leaves
from fusion.task_vectors.gram import Gram, gram
from fusion.task_vectors.sharded_reduce import Survey
from fusion.task_vectors.sparsify import trim_survey
from fusion.task_vectors.task_vectors import TaskVectors, accumulator


@dataclass
class Context:
    """A forward pass that waits for its backward pass."""

    inputs: Activations
    columns: dict[str, Tensor]
    outputs: Activations


class Shard(Block):
    """A block with surveys, forward and backward passes, and what collects or learns in it."""

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
    ) -> None:
        """Build the shard; see `Block` for the other arguments.

        Args:
            contexts: forward passes kept for their backward passes; older ones are run again.
        """
        super().__init__(base, vectors, heads, device, dtype, block, places)
        self.gathering = Gathering(self)
        self.residing = Residing(self)
        self.capacity = contexts
        self.contexts: OrderedDict[str, Context] = OrderedDict()
        self.passes: tuple[str, int, Survey[Any] | None] = ("", 0, None)
        """The survey under way: key of its weights, answers it has heard, generator."""

    # ---------------------------------------------------------------- surveys and resident weights

    def survey(self, weights: Weights, answers: list[Tensor]) -> tuple[bool, Any]:
        """The next question of a survey, given all answers so far: (finished, question or result).

        The generator of the last call is gone on with where it is this survey's; else it is
        run again from its start.
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

    def run(self, carry: Activations | Batch, weights: Weights) -> Activations:
        """Through the resident model filled with `weights`."""
        self.fill(weights)
        return self.encoder.run(self.entered(carry))

    def code(self, carry: Activations | Batch, weights: Weights) -> Activations:
        """Through merged layers, one model a row where the coding has as many; no gradients."""
        with torch.inference_mode():
            return self.chained(self.entered(carry), weights, self.columns(carry, weights))

    def forward(self, key: str, carry: Activations | Batch, weights: Weights) -> Activations:
        """As `code`, keeping what `backward` needs under `key`."""
        context = self.record(carry, weights)
        self.contexts[key] = context
        while len(self.contexts) > self.capacity:
            self.contexts.popitem(last=False)
        gauge("activations", len(self.contexts))
        return {name: value.detach() for name, value in context.outputs.items()}

    def backward(
        self, key: str, carry: Activations | Batch, weights: Weights, gradient: Activations
    ) -> tuple[Tensor, Activations]:
        """(∂L/∂coding of this block's tensors [M, T, G_block], ∂L/∂carry).

        `carry` and `weights` are those of the forward pass, which is run again where it is not
        kept.
        """
        context = self.contexts.pop(key, None) or self.record(carry, weights)
        gauge("activations", len(self.contexts))
        outputs = [context.outputs[name] for name in gradient]
        torch.autograd.backward(outputs, [value.to(self.device) for value in gradient.values()])
        return self.gradients(context)

    def finish(
        self, carry: Activations | Batch, weights: Weights, batch: Batch
    ) -> tuple[tuple[dict[str, float], float], Tensor, Activations]:
        """Forward, losses and backward of the last shard: ((losses, ∂/∂β), ∂/∂coding, ∂/∂carry)."""
        context = self.record(carry, weights)
        embedding = context.outputs[OUTPUT]
        embedding = embedding.to(accumulator(embedding.dtype))
        beta = torch.tensor(batch.beta, dtype=embedding.dtype, device=self.device)
        beta.requires_grad_()
        parts = [(task, len(rows)) for task, _, rows in batch.parts]
        stacked = TaskLoss(self.heads)(embedding, parts, batch.labels, beta)
        torch.autograd.backward([stacked.sum()])
        names = [task for task, _, _ in batch.parts]
        found = dict(zip(names, stacked.tolist(), strict=True))  # the host waits once
        tilt = 0.0 if beta.grad is None else beta.grad.item()
        return (found, tilt), *self.gradients(context)

    def record(self, carry: Activations | Batch, weights: Weights) -> Context:
        """A forward pass with autograd on, from fresh leaves."""
        inputs = {
            name: value.detach().requires_grad_(value.is_floating_point())
            for name, value in self.entered(carry).items()
        }
        columns = self.columns(carry, weights)
        with torch.enable_grad():
            return Context(inputs, columns, self.chained(inputs, weights, columns))

    def gradients(self, context: Context) -> tuple[Tensor, Activations]:
        """What autograd left in the leaves of a context."""
        columns = [zeros_or(column) for column in context.columns.values()]
        models, tasks = next(iter(context.columns.values())).shape if columns else (1, 0)
        empty = torch.zeros(models, tasks, 0)
        coding = torch.stack(columns, dim=2).cpu() if columns else empty
        return coding, {
            name: zeros_or(value) for name, value in context.inputs.items() if value.requires_grad
        }

    def chained(
        self, carry: Activations, weights: Weights, columns: Mapping[str, Tensor]
    ) -> Activations:
        """The carry after the merged segments."""
        self.mixer.vectors = self.trimmed(weights)
        with self.mixer.coded(columns):
            for module in self.merged:
                carry = module(carry)
        return carry

    def columns(self, carry: Activations | Batch, weights: Weights) -> dict[str, Tensor]:
        """The coding's columns for this block's tensors, as leaves.

        Raises:
            InputError: a coding that fits neither the task vectors nor the batch.
        """
        assert weights.coding is not None
        size = carry.size if isinstance(carry, Batch) else len(next(iter(carry.values())))
        check_coding(weights.coding, len(self.vectors.tasks), len(self.vectors.groups), size)
        coding = weights.coding.to(self.device)
        return leaves(self.names(), self.vectors.groups, coding)


def zeros_or(leaf: Tensor) -> Tensor:
    """A leaf's gradient; zeros where nothing reached it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def gradient_of(
    losses: Mapping[str, float], coding: Tensor, grouped: bool, beta: float = 0.0
) -> Gradient:
    """A micro-batch's gradient from that of each tensor's column [M, T, G]; summed where G = 1."""
    return Gradient(dict(losses), coding if grouped else coding.sum(2, keepdim=True), beta)
