"""WE-MoE routers: they read hidden states and merge the MLP of each segment accordingly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from actors.families.protocol import Activations, Segment, compute_all_rows
from actors.shards.adam import NamedAdam
from actors.shards.block import Block
from actors.shards.messages import Weights
from fusion.merged_layers.modules import Mixer, merge_layers
from fusion.methods.learned.in_model import InModelPlan, RouterOptions
from fusion.methods.learned.wemoe import RoutedMlp, Router
from fusion.task_vectors.task_vectors import TaskVectors, accumulator

ROUTER = "router."
"""Prefix of a router's tensor names, after the name of the MLP."""


def mlp_names(chain: Iterable[Segment]) -> list[str]:
    """Canonical names of the tensors of MLPs that routers can merge."""
    return [name for segment in chain for name in mlp_of(segment).values()]


def mlp_of(segment: Segment) -> dict[str, str]:
    """Tensors of a segment's MLP: the module's own name -> canonical name."""
    if segment.mlp is None:
        return {}
    return {own: name for own, name in segment.names.items() if own.startswith(f"{segment.mlp}.")}


def resident_weights(scale: float) -> Weights:
    """Weights of everything but the MLPs: task arithmetic, merged once into the resident model."""
    return Weights(f"routers over {scale!r}", "task_arithmetic", {"scale": scale}, own=True)


class Routers:
    """The routers of a block, and its segments with routed MLPs."""

    def __init__(
        self,
        block: Block,
        plan: InModelPlan,
        vectors: TaskVectors,
        pooled: bool,
    ) -> None:
        """Build routers with initial weights.

        Args:
            block: block whose weights are read; everything but the MLPs is shared with its
                resident model. Routers are seeded by the index of their segment in the whole chain.
            plan: plan of the training.
            vectors: base and task vectors of the MLPs.
            pooled: whether one model is merged for the whole batch.
        """
        assert isinstance(plan.options, RouterOptions)
        self.block, self.plan, self.options = block, plan, plan.options
        self.mixer = Mixer(vectors, dtype=block.resident.dtype)
        self.pooled = pooled
        self.modules: list[nn.Module] = []
        self.routed_mlps: list[RoutedMlp] = []
        self.local: dict[str, nn.Module] = {}
        """Name of an MLP -> its router, in order of segments."""
        for at, segment in enumerate(block.resident.chain):
            self.modules.append(self.routed(segment, block.resident.modules[at], block.start + at))
        every: dict[str, nn.Parameter] = {}
        for mlp, router in self.local.items():
            before = "" if self.options.shared else mlp
            every |= {f"{before}{ROUTER}{name}": p for name, p in router.named_parameters()}
        if self.options.shared:  # every block has a copy; gradients are summed in a fixed order
            every = {name: nn.Parameter(p.detach().clone()) for name, p in every.items()}
        self.adam = NamedAdam(every, plan.learning_rate)
        self.spread()

    def routed(self, segment: Segment, resident: nn.Module, index: int) -> nn.Module:
        """A segment with a routed MLP; a segment without an MLP is the resident model's."""
        inside = {k: v for k, v in mlp_of(segment).items() if v in self.mixer.vectors.deltas}
        if not inside:
            return resident
        module, path = segment.build(self.block.resident.dtype), str(segment.mlp)
        compute_all_rows(module, True)
        mlp = module.get_submodule(path)
        own = {key.removeprefix(f"{path}."): name for key, name in inside.items()}
        merge_layers(mlp, self.mixer, own)
        for name, parameter in resident.named_parameters(remove_duplicate=False):
            owner, _, leaf = name.rpartition(".")
            if name not in inside:
                setattr(module.get_submodule(owner), leaf, parameter)
        router = self.router(segment, index)
        parent, _, child = path.rpartition(".")
        routed = RoutedMlp(mlp, router, self.mixer, list(inside.values()), self.pooled)
        setattr(module.get_submodule(parent), child, routed)
        self.routed_mlps.append(routed)
        first, canonical = next(iter(inside.items()))
        self.local[canonical.removesuffix(first.removeprefix(f"{path}."))] = router
        return module

    def router(self, segment: Segment, index: int) -> Router:
        """The router of a segment, seeded by its index; a shared router is seeded by 0."""
        options = self.options
        router = Router(
            segment.width,
            len(self.mixer.vectors.tasks),
            options.depth,
            self.plan.scale,
            options.seed if options.shared else options.seed + 1_000_003 * index,
            accumulator(self.block.resident.dtype),
        )
        return router.to(self.block.device)

    def run(self, activations: Activations, lessons: int = 1) -> Activations:
        """Run all segments; routers ignore padded tokens.

        Args:
            activations: of B rows.
            lessons: equal parts of the batch that have a pooled model each. Default 1.
        """
        for module in self.modules:
            for mlp in self.routed_mlps:
                mlp.mask, mlp.models = activations.get("mask"), lessons
            activations = module(activations)
        return activations

    @torch.no_grad()
    def spread(self) -> None:
        """Copy the shared router to all segments."""
        if self.options.shared:
            for router in self.local.values():
                for name, parameter in router.named_parameters():
                    parameter.copy_(self.adam.parameters[ROUTER + name])

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Load the routers of the state after `steps` steps.

        Raises:
            InputError: routers of another shape.
        """
        self.adam.load(tensors, steps)
        self.spread()

    def prepare(self, step: int, phase: str, columns: object) -> None:
        """Fill the resident model; routers need no other preparation."""
        self.block.fill(resident_weights(self.plan.scale))

    def add(self, total: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Gradients of the shared router, summed over this block and the blocks behind it.

        Segments are added from the last to the first, so the order does not depend on the shards.
        """
        found = {} if total is None else {k: v.to(self.block.device) for k, v in total.items()}
        for router in reversed(self.local.values()):
            for name, parameter in router.named_parameters():
                if parameter.grad is not None:
                    key = ROUTER + name
                    found[key] = found[key] + parameter.grad if key in found else parameter.grad
        return found

    def update(self, total: Mapping[str, Tensor] | None) -> None:
        """One Adam step, with the total of `add` over all shards or each router's own gradient."""
        if total is None:
            own = self.adam.parameters
            total = {name: p.grad for name, p in own.items() if p.grad is not None}
        self.adam.step(total)
        for router in self.local.values():
            router.zero_grad(set_to_none=True)
        self.spread()
