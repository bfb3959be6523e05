"""A block: consecutive segments of the base with all task vectors, on one device.

A block merges task vectors into its resident model, reads prepared rows, and checks codings.
Surveys, forward and backward passes, and training are in `Shard`, routers, masks and statistics,
which work on a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from actors.artifacts.statistics_file import opened
from actors.checkpoints.checkpoint import Checkpoint
from actors.cluster.metrics import count
from actors.data.protocol import AVERAGED, PREFIX, Gathering, PreparedRows
from actors.families.protocol import Activations, segment_names
from actors.shards.messages import Batch, Weights
from actors.shards.resident_model import Blueprint, ResidentModel
from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.logits.head import Head, as_head
from fusion.merged_layers.modules import Mixer, merge_layers
from fusion.registry import METHODS
from fusion.staging import send, sent, staging
from fusion.task_vectors.coding import mix
from fusion.task_vectors.sparsify import trimmed
from fusion.task_vectors.task_vectors import StateDict, TaskVectors


class Block:
    """Segments [start, stop) of a model: base, task vectors and resident weights."""

    def __init__(
        self,
        base: Checkpoint | Blueprint,
        vectors: TaskVectors,
        heads: Mapping[str, Tensor | Head],
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        block: tuple[int, int] | None = None,
        places: Mapping[str, Path] | None = None,
        references: Mapping[str, StateDict] | None = None,
    ) -> None:
        """Build the block.

        Args:
            base: the base's checkpoint, or its blueprint with all weights of the block.
            vectors: task vectors of this block, on `device`; their `groups` are the whole model's.
            heads: task -> head; used by the block with the last segment.
            device: device to compute on.
            dtype: dtype of activations and merged weights.
            block: segments [start, stop); None: all.
            places: name of a file of prepared rows -> its path on this node, if it differs from
                the path in batches.
            references: finished model -> its fused tensors of this block, on the CPU.

        Raises:
            ValueError: task vectors on another device, which is a bug of the caller.
        """
        strays = [k for k, v in vectors.base.items() if v.device.type != torch.device(device).type]
        if strays:
            raise ValueError(f"{strays[0]}: task vectors on {vectors.base[strays[0]].device}")
        self.resident = ResidentModel(base, device, dtype, block)
        self.start = block[0] if block else 0
        """Index of its first segment in the whole chain."""
        self.vectors = vectors
        at = torch.device(device)
        self.heads = {task: as_head(head).to(at) for task, head in heads.items()}
        self.device = torch.device(device)
        self.mixer = Mixer(vectors, dtype=dtype)
        self.merged = [self.without_weights(i) for i in range(len(self.resident.modules))]
        self.filled = ""
        """Key of the weights that the resident model holds; empty: unknown."""
        self.normed = ""
        """Key of the weights whose running statistics it holds; empty: unknown."""
        self.trims: tuple[str, TaskVectors] = ("", vectors)
        self.statistics_root: Path | None = None
        """Cache folder of statistics files; None: this process's own."""
        self.places = places or {}
        self.references = references or {}
        self.opened: dict[Path, PreparedRows] = {}

        earlier = segment_names(self.resident.whole, 0, self.start)
        here = self.segments
        later = segment_names(self.resident.whole, here.stop, len(self.resident.whole))
        self.tied = tuple(name for name in vectors.deltas if name in {*earlier, *later})
        """Fused tensors that segments of other blocks also hold."""
        repeated = {name for name in self.tied if name in earlier}
        self.counted = (
            vectors.restrict([name for name in vectors.base if name not in repeated])
            if repeated
            else vectors
        )
        """The task vectors that this block contributes to sums over the whole model: each tensor
        is counted once, in the first block that holds it."""

    def check_untied(self, what: str) -> None:
        """Raise InputError if a tensor is tied to another block's; `what`: the method's name."""
        if self.tied:
            raise InputError(
                f"{what}: tensor {self.tied[0]!r} is tied across shards, which this method cannot"
                " treat; placement.shards: 1 needed"
            )

    @property
    def segments(self) -> range:
        """Indices of its segments in the whole chain."""
        return range(self.start, self.start + len(self.resident.modules))

    def without_weights(self, index: int) -> nn.Module:
        """A segment whose fused layers read merged weights; other weights are the resident's."""
        segment, resident = self.resident.chain[index], self.resident.modules[index]
        module = merge_layers(segment.build(self.resident.dtype), self.mixer, segment.names)
        for name, parameter in resident.named_parameters(remove_duplicate=False):
            owner, _, leaf = name.rpartition(".")
            if segment.names[name] not in self.vectors.deltas:
                setattr(module.get_submodule(owner), leaf, parameter)
        return module

    def names(self) -> tuple[str, ...]:
        """The fused tensors of this block, in the order of the gradients it returns."""
        return tuple(self.vectors.deltas)

    def fill(self, weights: Weights) -> None:
        """Merge into the resident model, unless it already holds these weights, and set its running
        statistics of batch norm."""
        there = self.filled == weights.key
        count("cache", cache="resident", found="hit" if there else "miss")
        if not there:
            self.filled = ""
            self.merge(weights, self.resident.arena)
            self.filled = weights.key
        if weights.running is not None and self.normed != weights.key:
            self.resident.set_running(weights.running.open())
            self.normed = weights.key

    def merge(self, weights: Weights, arena: StateDict | None = None) -> dict[str, Tensor]:
        """The merged tensors of this block, in new memory or written into `arena`; of a reference
        its own.

        Raises:
            InputError: the method refuses its input.
        """
        if weights.reference is not None:
            return self.copied(weights.reference, arena)
        vectors = self.trimmed(weights)
        if arena is not None:
            vectors = vectors.into(arena)
        if weights.own:
            vectors = replace(vectors, results=self.resident.dtype)
        if weights.method is None:
            assert weights.coding is not None
            return mix(vectors, weights.coding)
        row = METHODS[weights.method]
        return row.merge(vectors, self.inputs(weights), **(weights.params or {}))

    def copied(self, reference: str, arena: StateDict | None) -> dict[str, Tensor]:
        """A reference's tensors of this block, in new memory or copied into `arena`."""
        tensors = self.references[reference]
        if arena is None:
            return {name: tensor.clone() for name, tensor in tensors.items()}
        return {name: arena[name].copy_(tensor) for name, tensor in tensors.items()}

    def inputs(self, weights: Weights) -> MergeInputs:
        """Inputs of the method of `weights` beside task vectors and hyper-parameters."""
        keys, learned = weights.statistics, weights.learned
        if keys:
            self.check_untied(str(weights.method))
        return MergeInputs(
            survey=weights.survey,
            statistics=opened(keys, self.segments, self.statistics_root) if keys else None,
            task=weights.task,
            learned=None if learned is None else learned.open(),
        )

    def trimmed(self, weights: Weights) -> TaskVectors:
        """This block's task vectors after `weights.trim`; cached for one trim."""
        if weights.trim.nothing:
            return self.vectors
        key = f"{weights.trim} {weights.survey}"
        if self.trims[0] != key:
            self.trims = ("", self.vectors)  # free the old ones first
            with torch.inference_mode(False):  # a training step may reuse those of an evaluation
                self.trims = (key, trimmed(self.vectors, weights.trim, weights.survey))
        return self.trims[1]

    def to_device(self, activations: Activations | Batch) -> Activations:
        """Move activations to this device; a batch is read from its files of prepared rows."""
        if not isinstance(activations, Batch):
            return {name: value.to(self.device) for name, value in activations.items()}
        inputs = self.resident.inputs
        asked = [(self.open(path), torch.from_numpy(rows)) for _, path, rows in activations.parts]
        if isinstance(inputs, Gathering):
            gathered = inputs.gather(asked, partial(staging, device=self.device))
            return {name: send(value, self.device) for name, value in gathered.items()}
        parts = [file.take(rows) for file, rows in asked]
        if activations.prefix is not None:
            sizes = [len(rows) for _, _, rows in activations.parts]
            texts = torch.split(activations.prefix, sizes)
            parts = [{**part, PREFIX: text} for part, text in zip(parts, texts, strict=True)]
        for at, (task, _, rows) in enumerate(activations.parts):
            if task in activations.averaged:
                parts[at] = {**parts[at], AVERAGED: torch.full((len(rows),), at)}
        collated = inputs.collate(parts)
        return {name: sent(value, self.device) for name, value in collated.items()}

    def open(self, path: Path) -> PreparedRows:
        """Open a memory-mapped file of prepared rows; cached."""
        if path not in self.opened:
            self.opened[path] = self.resident.inputs.open(self.places.get(path.name, path))
        return self.opened[path]
