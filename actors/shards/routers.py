"""Routers inside the blocks of a shard: they read hidden states, and merge each block's MLP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from actors.families.protocol import Activations, Segment
from actors.shards.adam import NamedAdam
from actors.shards.block import Block
from actors.shards.messages import Weights
from fusion.merged_layers.modules import Mixer, merge_layers
from fusion.methods.learned.in_model import ResidentCourse, RouterOptions
from fusion.methods.learned.wemoe import RoutedMlp, Router
from fusion.task_vectors.task_vectors import TaskVectors, accumulator

ROUTER = "router."
"""Begins the name of a router's tensors, after the MLP's own name."""


def mlp_names(chain: Iterable[Segment]) -> list[str]:
    """Canonical names of the tensors of MLPs that routers can replace."""
    return [name for link in chain for name in mlp_of(link).values()]


def mlp_of(link: Segment) -> dict[str, str]:
    """The module's own name -> canonical name, of the tensors of a segment's MLP."""
    if link.mlp is None:
        return {}
    return {own: name for own, name in link.names.items() if own.startswith(f"{link.mlp}.")}


def resident_weights(scale: float) -> Weights:
    """What everything but the MLPs is: task arithmetic, merged once into the resident model."""
    return Weights(f"routers over {scale!r}", "task_arithmetic", {"scale": scale}, own=True)


class Routers:
    """The routers of a block, and its segments with routed MLPs."""

    def __init__(
        self,
        block: Block,
        course: ResidentCourse,
        vectors: TaskVectors,
        pooled: bool,
    ) -> None:
        """Routers at the beginning.

        Args:
            block: its weights are read; all but the MLPs is shared with its resident model.
                Routers are drawn by the index of their segment in the whole chain.
            course: what is learned.
            vectors: the MLPs' base and task vectors.
            pooled: one model for a batch.
        """
        assert isinstance(course.options, RouterOptions)
        self.block, self.course, self.options = block, course, course.options
        self.mixer = Mixer(vectors, dtype=block.encoder.dtype)
        self.pooled = pooled
        self.modules: list[nn.Module] = []
        self.routed_mlps: list[RoutedMlp] = []
        self.local: dict[str, nn.Module] = {}
        """Name of an MLP -> its router, in order."""
        for at, link in enumerate(block.encoder.chain):
            self.modules.append(self.routed(link, block.encoder.modules[at], block.start + at))
        every: dict[str, nn.Parameter] = {}
        for mlp, router in self.local.items():
            before = "" if self.options.shared else mlp
            every |= {f"{before}{ROUTER}{name}": p for name, p in router.named_parameters()}
        if self.options.shared:  # blocks have copies, whose gradients are added up in one order
            every = {name: nn.Parameter(p.detach().clone()) for name, p in every.items()}
        self.adam = NamedAdam(every, course.learning_rate)
        self.spread()

    def routed(self, link: Segment, resident: nn.Module, index: int) -> nn.Module:
        """A segment whose MLP is routed; one without an MLP is the resident's own."""
        inside = {k: v for k, v in mlp_of(link).items() if v in self.mixer.vectors.deltas}
        if not inside:
            return resident
        module, path = link.build(self.block.encoder.dtype), str(link.mlp)
        mlp = module.get_submodule(path)
        own = {key.removeprefix(f"{path}."): name for key, name in inside.items()}
        merge_layers(mlp, self.mixer, own)
        for name, parameter in resident.named_parameters(remove_duplicate=False):
            owner, _, leaf = name.rpartition(".")
            if name not in inside:
                setattr(module.get_submodule(owner), leaf, parameter)
        router = self.router(link, index)
        parent, _, child = path.rpartition(".")
        routed = RoutedMlp(mlp, router, self.mixer, list(inside.values()), self.pooled)
        setattr(module.get_submodule(parent), child, routed)
        self.routed_mlps.append(routed)
        first, canonical = next(iter(inside.items()))
        self.local[canonical.removesuffix(first.removeprefix(f"{path}."))] = router
        return module

    def router(self, link: Segment, index: int) -> Router:
        """The router of a block, drawn by its index; 0 for one that blocks share."""
        options = self.options
        router = Router(
            link.width,
            len(self.mixer.vectors.tasks),
            options.depth,
            self.course.scale,
            options.seed if options.shared else options.seed + 1_000_003 * index,
            accumulator(self.block.encoder.dtype),
        )
        return router.to(self.block.device)

    def run(self, activations: Activations) -> Activations:
        """Through all segments; routers leave padded tokens out."""
        for module in self.modules:
            for mlp in self.routed_mlps:
                mlp.mask = activations.get("mask")
            activations = module(activations)
        return activations

    @torch.no_grad()
    def spread(self) -> None:
        """Give every block what the shared router is."""
        if self.options.shared:
            for router in self.local.values():
                for name, parameter in router.named_parameters():
                    parameter.copy_(self.adam.parameters[ROUTER + name])

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Routers after that many steps.

        Raises:
            InputError: routers of another shape.
        """
        self.adam.load(tensors, steps)
        self.spread()

    def prepare(self, step: int, phase: str, columns: object) -> None:
        """The resident model is what it has to be."""
        self.block.fill(resident_weights(self.course.scale))

    def add(self, total: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Gradients of the shared router: those of this block's segments, from the last to the
        first, added to those of the shards behind it. The order is the same for every cut."""
        found = {} if total is None else {k: v.to(self.block.device) for k, v in total.items()}
        for router in reversed(self.local.values()):
            for name, parameter in router.named_parameters():
                if parameter.grad is not None:
                    key = ROUTER + name
                    found[key] = found[key] + parameter.grad if key in found else parameter.grad
        return found

    def update(self, total: Mapping[str, Tensor] | None) -> None:
        """One step of Adam, on what `add` gave over all shards, or on each router's own."""
        if total is None:
            own = self.adam.parameters
            total = {name: p.grad for name, p in own.items() if p.grad is not None}
        self.adam.step(total)
        for router in self.local.values():
            router.zero_grad(set_to_none=True)
        self.spread()
