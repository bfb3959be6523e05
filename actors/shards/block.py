"""A block: consecutive segments of the base with all task vectors, on one device.

A block merges task vectors into its resident model, reads prepared rows, and checks codings. It
knows neither surveys, nor passes, nor training: `Shard`, routers, masks and statistics do, and
work on a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from actors.artifacts.statistics_file import opened
from actors.checkpoints.checkpoint import Checkpoint
from actors.cluster.metrics import count
from actors.data.protocol import PreparedRows
from actors.families.protocol import Activations, segment_names
from actors.shards.messages import Batch, Weights
from actors.shards.resident_model import Blueprint, ImageEncoder
from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.logits.head import Head, as_head
from fusion.merged_layers.modules import Mixer, merge_layers
from fusion.registry import METHODS
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
    ) -> None:
        """Build the block.

        Args:
            base: the base's checkpoint, or its blueprint with all weights of the block.
            vectors: of this block, on `device`; `groups` are the whole model's.
            heads: task -> head; read by the block that has the last segment.
            device: where it computes.
            dtype: of activations and merged weights.
            block: segments [start, stop); None: all.
            places: name of a file of prepared rows -> its path on this node, where batches name
                another one.

        Raises:
            ValueError: task vectors on another device: a bug of the caller.
        """
        strays = [k for k, v in vectors.base.items() if v.device.type != torch.device(device).type]
        if strays:
            raise ValueError(f"{strays[0]}: task vectors on {vectors.base[strays[0]].device}")
        self.encoder = ImageEncoder(base, device, dtype, block)
        self.start = block[0] if block else 0
        """Index of its first segment in the whole chain."""
        self.vectors = vectors
        at = torch.device(device)
        self.heads = {task: as_head(head).to(at) for task, head in heads.items()}
        self.device = torch.device(device)
        self.mixer = Mixer(vectors, dtype=dtype)
        self.merged = [self.without_weights(i) for i in range(len(self.encoder.modules))]
        self.filled = ""
        """Key of the weights that the resident model holds; empty: unknown."""
        self.trims: tuple[str, TaskVectors] = ("", vectors)
        self.statistics_root: Path | None = None
        """The cache folder of statistics files, where it is not this process's own."""
        self.places = places or {}
        self.opened: dict[Path, PreparedRows] = {}

        earlier = segment_names(self.encoder.whole, 0, self.start)
        here = self.segments
        later = segment_names(self.encoder.whole, here.stop, len(self.encoder.whole))
        self.tied = tuple(name for name in vectors.deltas if name in {*earlier, *later})
        """Fused tensors that segments of other blocks hold as well."""
        repeated = {name for name in self.tied if name in earlier}
        self.counted = (
            vectors.restrict([name for name in vectors.base if name not in repeated])
            if repeated
            else vectors
        )
        """The task vectors that this block counts in sums over the whole model: each tensor is
        counted once, in the first block that holds it."""

    def check_untied(self, what: str) -> None:
        """Raise InputError where a tensor is tied to one of another block; `what`: the method."""
        if self.tied:
            raise InputError(
                f"{what}: tensor {self.tied[0]!r} is tied across shards, which this method cannot"
                " treat; placement.shards: 1 needed"
            )

    @property
    def segments(self) -> range:
        """Indices of its segments in the whole chain."""
        return range(self.start, self.start + len(self.encoder.modules))

    def without_weights(self, index: int) -> nn.Module:
        """A segment whose fused layers read merged weights; others share the resident's."""
        link, resident = self.encoder.chain[index], self.encoder.modules[index]
        module = merge_layers(link.build(self.encoder.dtype), self.mixer, link.names)
        for name, parameter in resident.named_parameters(remove_duplicate=False):
            owner, _, leaf = name.rpartition(".")
            if link.names[name] not in self.vectors.deltas:
                setattr(module.get_submodule(owner), leaf, parameter)
        return module

    def names(self) -> tuple[str, ...]:
        """The fused tensors of this block, in the order of the gradients it returns."""
        return tuple(self.vectors.deltas)

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
        row = METHODS[weights.method]
        return row.merge(vectors, self.inputs(weights), **(weights.params or {}))

    def inputs(self, weights: Weights) -> MergeInputs:
        """What the method of `weights` reads beside task vectors and hyper-parameters."""
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
        """This block's task vectors as `weights.trim` wants them; one kind is kept at a time."""
        if weights.trim.nothing:
            return self.vectors
        key = f"{weights.trim} {weights.survey}"
        if self.trims[0] != key:
            self.trims = ("", self.vectors)  # let go of the old before making the new
            with torch.inference_mode(False):  # a micro-batch may want what an evaluation made
                self.trims = (key, trimmed(self.vectors, weights.trim, weights.survey))
        return self.trims[1]

    def entered(self, carry: Activations | Batch) -> Activations:
        """The activations on this device; a batch is read from its files of prepared rows."""
        if not isinstance(carry, Batch):
            return {name: value.to(self.device) for name, value in carry.items()}
        parts = [self.open(path).take(torch.from_numpy(rows)) for _, path, rows in carry.parts]
        collated = self.encoder.inputs.collate(parts)
        return {name: value.to(self.device) for name, value in collated.items()}

    def open(self, path: Path) -> PreparedRows:
        """The memory-mapped file of prepared rows, opened once."""
        if path not in self.opened:
            self.opened[path] = self.encoder.inputs.open(self.places.get(path.name, path))
        return self.opened[path]
