"""Resident models: modules whose parameter memory merged weights are written into."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from actors.checkpoints.checkpoint import Checkpoint, read
from actors.data.protocol import Inputs
from actors.families.protocol import OUTPUT, Activations, Segment
from actors.families.registry import family_in, inspect
from actors.training.precision import exact_products
from fusion.task_vectors.task_vectors import StateDict


@dataclass(frozen=True)
class Blueprint:
    """A base apart from its files: what a node builds a model from that does not see them."""

    chain: tuple[Segment, ...]
    inputs: Inputs
    tensors: StateDict
    """Canonical name -> weights, in canonical order."""


def blueprint(base: Checkpoint, fused: Collection[str]) -> Blueprint:
    """A base's layout, and the weights that do not come with the task vectors (the projection,
    where no expert brings its own).

    Raises:
        InputError: see `ModelFamily.segments`.
    """
    rest = [name for name in base.tensors if name not in fused]
    tensors = {name: tensor.clone() for name, tensor in read(base, rest)}
    family = family_in(base)
    return Blueprint(family.segments(base), family.inputs(base), tensors)


def tie(module: nn.Module, names: Mapping[str, str], parameters: dict[str, nn.Parameter]) -> None:
    """Give parameters of one canonical name one memory: the first of a name stays, later ones go.

    Args:
        module: a built segment.
        names: its own parameter names -> canonical names.
        parameters: canonical name -> parameter of the segments before; new ones are added.
    """
    for own, parameter in list(module.named_parameters()):
        first = parameters.setdefault(names[own], parameter)
        if first is not parameter:
            owner, _, leaf = own.rpartition(".")
            setattr(module.get_submodule(owner), leaf, first)


class ImageEncoder:
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
            device: where it lives and computes.
            dtype: what it computes in.
            block: segments [start, stop) only of the chain; None: all of them.

        Raises:
            InputError: a model that no chain can be made of.
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
        self.arena: dict[str, Tensor] = {}
        """Canonical name -> the live memory of that parameter, contiguous."""
        self.modules = []
        parameters: dict[str, nn.Parameter] = {}
        for segment in self.chain:
            module = segment.build(dtype).to_empty(device=device).to(dtype)
            tie(module, segment.names, parameters)
            self.modules.append(module)
        self.arena = {name: parameters[name].data for name in base.tensors if name in parameters}
        if isinstance(base, Checkpoint):
            self.load(read(base, self.arena))
        else:
            self.load((name, base.tensors[name]) for name in self.arena)

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy weights into the arena."""
        left = set(self.arena)
        for name, tensor in tensors:
            self.arena[name].copy_(tensor)
            left.remove(name)
        assert not left, f"not filled: {sorted(left)}"  # headers were checked before

    @torch.inference_mode()
    def run(self, carry: Activations) -> Activations:
        """The activations after these segments."""
        for module in self.modules:
            carry = module(carry)
        return carry

    def outputs(self, inputs: Activations) -> Tensor:
        """Collated inputs -> outputs [B, …]."""
        return self.run({name: value.to(self.device) for name, value in inputs.items()})[OUTPUT]
