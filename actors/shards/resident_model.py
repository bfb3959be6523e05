"""Resident models: modules into whose parameters merged weights are written."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from actors.checkpoints.checkpoint import Checkpoint, read
from actors.data.protocol import Inputs
from actors.families.protocol import OUTPUT, Activations, Segment
from actors.families.registry import family_in, inspect
from actors.shards.cuda_graph import GraphedRun, asked
from actors.training.precision import exact_products
from fusion.task_vectors.packed import packed
from fusion.task_vectors.task_vectors import StateDict

ALIGNED = 16
"""Elements to whose multiples the start of each parameter is rounded up on a GPU, as 16-byte loads
need; sizes of common models are multiples of it, and leave no gaps."""


@dataclass(frozen=True)
class Blueprint:
    """A base without its files, from which a node builds a model that does not see them."""

    chain: tuple[Segment, ...]
    inputs: Inputs
    tensors: StateDict
    """Canonical name -> weights, in canonical order."""


def blueprint(base: Checkpoint, fused: Collection[str]) -> Blueprint:
    """The base's layout, and the weights that are not part of the task vectors.

    For CLIP this is the projection, if no expert has its own.

    Raises:
        InputError: see `ModelFamily.segments`.
    """
    rest = [name for name in base.tensors if name not in fused]
    tensors = {name: tensor.clone() for name, tensor in read(base, rest)}
    family = family_in(base)
    return Blueprint(family.segments(base), family.inputs(base), tensors)


def tie(module: nn.Module, names: Mapping[str, str], parameters: dict[str, nn.Parameter]) -> None:
    """Tie parameters of one canonical name: later ones are replaced by the first.

    Args:
        module: a built segment.
        names: the module's own parameter names -> canonical names.
        parameters: canonical name -> parameter of earlier segments; new ones are added.
    """
    for own, parameter in list(module.named_parameters()):
        first = parameters.setdefault(names[own], parameter)
        if first is not parameter:
            owner, _, leaf = own.rpartition(".")
            setattr(module.get_submodule(owner), leaf, first)


class ResidentModel:
    """A model, or a block of its segments, resident on one device."""

    def __init__(
        self,
        base: Path | str | Checkpoint | Blueprint,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        block: tuple[int, int] | None = None,
    ) -> None:
        """Build the segments and fill them from the file.

        Args:
            base: the folder of a model with a projection, its inspected checkpoint, or a
                blueprint with all weights of the block.
            device: device of the parameters.
            dtype: dtype to compute in.
            block: only segments [start, stop) of the chain; None: all.

        Raises:
            InputError: a model that cannot be split into segments.
        """
        exact_products()
        if not isinstance(base, Checkpoint | Blueprint):
            base = inspect(str(base), "pool.base")
        plan = base if isinstance(base, Blueprint) else blueprint(base, base.tensors)
        self.device = torch.device(device)
        self.dtype = dtype
        self.chain = plan.chain[slice(*(block or (None, None)))]
        self.whole = plan.chain
        """All segments of the model."""
        self.inputs = plan.inputs
        self.arena: StateDict = {}
        """Canonical name -> the parameter's own memory, contiguous; on a GPU packed, so that a
        merge is few launches."""
        self.modules = []
        self.running: dict[str, Tensor] = {}
        """Canonical name -> the running statistic's own memory; NaN until it is known."""
        parameters: dict[str, nn.Parameter] = {}
        for segment in self.chain:
            module = segment.build(dtype).to_empty(device=device).to(dtype)
            tie(module, segment.names, parameters)
            self.modules.append(module)
            for own, name in segment.running.items():
                self.running[name] = module.get_buffer(own).fill_(math.nan)
        self.arena = {name: parameters[name].data for name in base.tensors if name in parameters}
        if self.device.type != "cpu":
            self.arena = self.packed_parameters()
        if isinstance(base, Checkpoint):
            self.load(read(base, self.arena))
            self.set_running(dict(read(base, self.running)))
        else:
            self.load((name, base.tensors[name]) for name in self.arena)
        self.graphs = GraphedRun(self.chained) if asked(self.device) else None

    def packed_parameters(self) -> StateDict:
        """Put parameters into one array for each dtype; starts are aligned for matrix products."""
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in self.arena.items()}
        arena = packed(shapes, self.device, aligned=ALIGNED)
        made = {name: nn.Parameter(place) for name, place in arena.items()}
        for module, segment in zip(self.modules, self.chain, strict=True):
            for own, parameter in list(module.named_parameters(remove_duplicate=False)):
                if (name := segment.names[own]) in made:
                    owner, _, leaf = own.rpartition(".")
                    setattr(module.get_submodule(owner), leaf, made[name])
                    made[name].requires_grad_(parameter.requires_grad)
        return arena

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy weights into the arena."""
        left = set(self.arena)
        for name, tensor in tensors:
            self.arena[name].copy_(tensor)
            left.remove(name)
        assert not left, f"not filled: {sorted(left)}"  # headers were checked before

    def set_running(self, tensors: StateDict) -> None:
        """Copy the running statistics of batch norm."""
        for name, place in self.running.items():
            place.copy_(tensors[name])

    @torch.inference_mode()
    def run(self, activations: Activations) -> Activations:
        """Run the segments, by CUDA graphs where they are asked for and give the same bits."""
        return self.chained(activations) if self.graphs is None else self.graphs(activations)

    def chained(self, activations: Activations) -> Activations:
        """Run the segments one after the other."""
        for module in self.modules:
            activations = module(activations)
        return activations

    def outputs(self, inputs: Activations) -> Tensor:
        """Collated inputs -> outputs [B, …]."""
        return self.run({name: value.to(self.device) for name, value in inputs.items()})[OUTPUT]
