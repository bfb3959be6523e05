"""A shard: a block of consecutive segments of base and all task vectors, in one process.

A plain class. Every call carries all that it needs, so that a shard that died and came back, with
nothing but its weights, answers the same to the bit. What it keeps between calls only saves time:
the resident weights of the last filling, and the activations of forward passes whose backward pass
is to come.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from actors.checkpoints.checkpoint import Checkpoint
from actors.cluster.metrics import count, gauge
from actors.data.images.pixel_cache import Pixels, open_pixels
from actors.families.clip.segments import Carry, Embed
from actors.shards.in_model_learning import Residing
from actors.shards.messages import Batch as Batch
from actors.shards.messages import Weights as Weights
from actors.shards.resident_model import Blueprint, ImageEncoder
from actors.shards.statistics import Gathering
from fusion.logits.cosine_head import logits
from fusion.logits.entropy import entropy
from fusion.merged_layers.modules import Mixer, merge_layers
from fusion.methods.learned.steps import Gradient
from fusion.registry import METHODS, Resident, Static
from fusion.task_vectors.coding import check_coding, leaves, mix
from fusion.task_vectors.gram import Gram, gram
from fusion.task_vectors.sharded_reduce import Survey
from fusion.task_vectors.sparsify import trim_survey, trimmed
from fusion.task_vectors.task_vectors import StateDict, TaskVectors, accumulator


@dataclass
class Context:
    """A forward pass that waits for its backward pass."""

    inputs: Carry
    columns: dict[str, Tensor]
    outputs: Carry


class Shard:
    """Segments [start, stop) with their base, task vectors and resident weights."""

    def __init__(
        self,
        base: Checkpoint | Blueprint,
        vectors: TaskVectors,
        heads: Mapping[str, Tensor],
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        block: tuple[int, int] | None = None,
        contexts: int = 1,
        places: Mapping[str, Path] | None = None,
    ) -> None:
        """Build the block.

        Args:
            base: the base's checkpoint, or its blueprint with all weights of the block.
            vectors: of this block, on `device`; `groups` are the whole model's.
            heads: task -> zero-shot head [C, D]; read by the shard that has the last segment.
            device: where it computes.
            dtype: what activations and merged weights are.
            block: segments [start, stop); None: all.
            contexts: forward passes kept for their backward passes; older ones are run again.
            places: name of a pixel file -> where it lies on this node; others lie where batches
                say.

        Raises:
            ValueError: task vectors on another device: a bug of the caller.
        """
        strays = [k for k, v in vectors.base.items() if v.device.type != torch.device(device).type]
        if strays:
            raise ValueError(f"{strays[0]}: task vectors on {vectors.base[strays[0]].device}")
        self.encoder = ImageEncoder(base, device, dtype, block)
        self.vectors = vectors
        self.heads = {task: head.to(device) for task, head in heads.items()}
        self.device = torch.device(device)
        self.gathering = Gathering(self, block[0] if block else 0)
        self.residing = Residing(self, block[0] if block else 0)
        self.mixer = Mixer(vectors)
        self.merged = [self.without_weights(i) for i in range(len(self.encoder.modules))]
        self.capacity = contexts
        self.contexts: OrderedDict[str, Context] = OrderedDict()
        self.filled = ""
        self.trims: tuple[str, TaskVectors] = ("", vectors)
        self.passes: tuple[str, int, Survey[Any] | None] = ("", 0, None)
        """The survey under way: key of its weights, answers it has heard, generator."""
        self.places = places or {}
        self.opened: dict[Path, Pixels] = {}

    def without_weights(self, index: int) -> nn.Module:
        """A segment whose fused layers read merged weights; others share the resident's."""
        link, resident = self.encoder.chain[index], self.encoder.modules[index]
        module = merge_layers(link.build(), self.mixer, link.names)
        for name, parameter in resident.named_parameters():
            owner, _, leaf = name.rpartition(".")
            if link.names[name] not in self.vectors.deltas:
                setattr(module.get_submodule(owner), leaf, parameter)
        if isinstance(module, Embed):
            module.dtype = self.encoder.dtype
        return module

    def names(self) -> tuple[str, ...]:
        """The fused tensors of this block, in the order of the gradients it returns."""
        return tuple(self.vectors.deltas)

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
            return trim_survey(self.vectors, weights.trim)
        method = METHODS[weights.method]
        assert isinstance(method, Static)
        return method.start_survey(self.vectors, self.given(weights))

    def fill(self, weights: Weights) -> None:
        """Merge into the resident model; at once where it is filled so already."""
        there = self.filled == weights.key
        count("cache", cache="resident", found="hit" if there else "miss")
        if there:
            return
        self.filled = ""
        self.merge(weights, self.encoder.arena)
        self.filled = weights.key

    def merge(self, weights: Weights, arena: StateDict | None = None) -> dict[str, Tensor]:
        """The merged tensors of this block, fresh or into `arena`.

        Raises:
            InputError: what the method refuses.
        """
        vectors = self.trimmed(weights)
        if arena is not None:
            vectors = vectors.into(arena)
        if weights.own:
            vectors = replace(vectors, results=self.encoder.dtype)
        if weights.method is None:
            assert weights.coding is not None
            return mix(vectors, weights.coding)
        method = METHODS[weights.method]
        assert isinstance(method, Static | Resident)
        return method.merge_surveyed(vectors, weights.survey, self.given(weights))

    def given(self, weights: Weights) -> dict[str, Any]:
        """The parameters of a method's call, with the statistics that it needs."""
        params = dict(weights.params or {})
        if weights.statistics:
            params["statistics"] = self.gathering.opened(weights.statistics)
        if weights.learned is not None:
            params["learned"] = weights.learned.open()
        return params

    def trimmed(self, weights: Weights) -> TaskVectors:
        """This block's task vectors as `weights.trim` wants them; one kind is kept at a time."""
        if weights.trim.nothing:
            return self.vectors
        key = f"{weights.trim} {weights.survey}"
        if self.trims[0] != key:
            self.trims = ("", self.vectors)  # let go of the old before making the new
            with torch.inference_mode(False):  # a lesson may want what an evaluation made
                self.trims = (key, trimmed(self.vectors, weights.trim, weights.survey))
        return self.trims[1]

    def gram(self) -> Gram:
        """Inner products of this block's task vectors."""
        return gram(self.vectors)

    def gather(self, what: str, *args: Any) -> Any:
        """A call of `Gathering`, which looks on while experts run through this block."""
        return getattr(self.gathering, what)(*args)

    def reside(self, what: str, *args: Any) -> Any:
        """A call of `Residing`, whose parameters live and learn beside this block's weights."""
        return getattr(self.residing, what)(*args)

    # ------------------------------------------------------------------------------ forward passes

    def run(self, carry: Carry | Batch, weights: Weights) -> Carry:
        """Through the resident model filled with `weights`."""
        self.fill(weights)
        return self.encoder.run(self.entered(carry))

    def code(self, carry: Carry | Batch, weights: Weights) -> Carry:
        """Through merged layers, one model a row where the coding has as many; no gradients."""
        with torch.inference_mode():
            return self.chained(self.entered(carry), weights, self.columns(carry, weights))

    def forward(self, key: str, carry: Carry | Batch, weights: Weights) -> Carry:
        """As `code`, keeping what `backward` needs under `key`."""
        context = self.record(carry, weights)
        self.contexts[key] = context
        while len(self.contexts) > self.capacity:
            self.contexts.popitem(last=False)
        gauge("activations", len(self.contexts))
        return {name: value.detach() for name, value in context.outputs.items()}

    def backward(
        self, key: str, carry: Carry | Batch, weights: Weights, gradient: Carry
    ) -> tuple[Tensor, Carry]:
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
        self, carry: Carry | Batch, weights: Weights, batch: Batch
    ) -> tuple[tuple[dict[str, float], float], Tensor, Carry]:
        """Forward, losses and backward of the last shard: ((losses, ∂/∂β), ∂/∂coding, ∂/∂carry)."""
        context = self.record(carry, weights)
        embedding = context.outputs["embedding"]
        embedding = embedding.to(accumulator(embedding.dtype))
        losses, at = [], 0
        beta = torch.tensor(batch.beta, dtype=embedding.dtype, device=self.device)
        beta.requires_grad_()
        for task, _, rows in batch.parts:
            here = slice(at, at + len(rows))
            z = logits(embedding[here], self.heads[task].to(embedding.dtype))
            if batch.labels is None:
                losses.append(entropy(z).mean())
            else:
                losses.append(cross_entropy(beta * z, batch.labels[here].to(self.device)))
            at += len(rows)
        stacked = torch.stack(losses)
        torch.autograd.backward([stacked.sum()])
        names = [task for task, _, _ in batch.parts]
        found = dict(zip(names, stacked.tolist(), strict=True))  # the host waits once
        tilt = 0.0 if beta.grad is None else beta.grad.item()
        return (found, tilt), *self.gradients(context)

    def record(self, carry: Carry | Batch, weights: Weights) -> Context:
        """A forward pass with autograd on, from fresh leaves."""
        inputs = {
            name: value.detach().requires_grad_(value.is_floating_point())
            for name, value in self.entered(carry).items()
        }
        columns = self.columns(carry, weights)
        with torch.enable_grad():
            return Context(inputs, columns, self.chained(inputs, weights, columns))

    def gradients(self, context: Context) -> tuple[Tensor, Carry]:
        """What autograd left in the leaves of a context."""
        columns = [zeros_or(column) for column in context.columns.values()]
        models, tasks = next(iter(context.columns.values())).shape if columns else (1, 0)
        empty = torch.zeros(models, tasks, 0)
        coding = torch.stack(columns, dim=2).cpu() if columns else empty
        return coding, {
            name: zeros_or(value) for name, value in context.inputs.items() if value.requires_grad
        }

    def chained(self, carry: Carry, weights: Weights, columns: Mapping[str, Tensor]) -> Carry:
        """The carry after the merged segments."""
        self.mixer.vectors = self.trimmed(weights)
        with self.mixer.coded(columns):
            for module in self.merged:
                carry = module(carry)
        return carry

    def columns(self, carry: Carry | Batch, weights: Weights) -> dict[str, Tensor]:
        """The coding's columns for this block's tensors, as leaves.

        Raises:
            InputError: a coding that fits neither the task vectors nor the batch.
        """
        assert weights.coding is not None
        size = carry.size if isinstance(carry, Batch) else len(next(iter(carry.values())))
        check_coding(weights.coding, len(self.vectors.tasks), len(self.vectors.groups), size)
        coding = weights.coding.to(self.device)
        return leaves(self.names(), self.vectors.groups, coding)

    def entered(self, carry: Carry | Batch) -> Carry:
        """The carry on this device; a batch is read from its pixel files."""
        if not isinstance(carry, Batch):
            return {name: value.to(self.device) for name, value in carry.items()}
        images = [self.open(path).images[torch.from_numpy(rows)] for _, path, rows in carry.parts]
        return {"pixels": torch.cat(images).to(self.device)}

    def open(self, path: Path) -> Pixels:
        """The memory-mapped pixel file, opened once."""
        if path not in self.opened:
            self.opened[path] = open_pixels(self.places.get(path.name, path))
        return self.opened[path]


def zeros_or(leaf: Tensor) -> Tensor:
    """A leaf's gradient; zeros where nothing reached it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def gradient_of(
    losses: Mapping[str, float], coding: Tensor, grouped: bool, beta: float = 0.0
) -> Gradient:
    """A lesson's gradient from that of each tensor's column [M, T, G]; summed where G = 1."""
    return Gradient(dict(losses), coding if grouped else coding.sum(2, keepdim=True), beta)
