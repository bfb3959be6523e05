"""Concrete masks over the weights of a block: their logits, and the masked merged model.

The merged weights are written into the resident model, whose own parameters are not trained: its
gradients ∂L/∂θ are converted, tensor by tensor, into gradients of mask logits and coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from actors.families.protocol import Activations
from actors.shards.adam import NamedAdam
from actors.shards.block import Block
from fusion.methods.learned.concrete import (
    coefficient_gradient,
    drawn,
    logits_gradient,
    mask_of,
    masked,
    relaxed,
    summed,
)
from fusion.methods.learned.in_model import InModelPlan, MaskOptions
from fusion.task_vectors.lazy import as_stored
from fusion.task_vectors.task_vectors import accumulator


class Masks:
    """Mask logits of a block's tensors, and their optimiser."""

    def __init__(self, block: Block, plan: InModelPlan, seed: int) -> None:
        """Initial logits; `seed`: of the drawn masks."""
        assert isinstance(plan.options, MaskOptions)
        self.block, self.plan, self.options, self.seed = block, plan, plan.options, seed
        self.modules = block.resident.modules
        block.check_untied("Concrete")
        base = block.vectors.base
        logits = {
            name: nn.Parameter(
                torch.full(
                    base[name].shape,
                    self.options.start,
                    dtype=accumulator(base[name].dtype),
                    device=block.device,
                )
            )
            for name in block.names()
        }
        self.adam = NamedAdam(logits, plan.learning_rate)
        self.weights: dict[str, nn.Parameter] = {}
        """Tensor name -> parameter of the resident model."""
        for segment, module in zip(block.resident.chain, self.modules, strict=True):
            for name, parameter in module.named_parameters():
                if segment.names[name] in logits:
                    self.weights[segment.names[name]] = parameter
        self.drawn: tuple[str, dict[str, Tensor]] = ("", {})
        self.steps: tuple[object, dict[str, Tensor]] = (None, {})
        """Coefficients λ and the sums Σ_t λ_t τ_t computed with them."""

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Load the logits of the state after `steps` steps.

        Raises:
            InputError: logits of another shape.
        """
        learning = steps if self.options.grouping is None else self.options.mask_steps
        self.adam.load(tensors, min(steps, learning))

    @torch.no_grad()
    def prepare(self, step: int, phase: str, columns: Mapping[str, list[float]]) -> None:
        """Merge into the resident model, and turn on its gradients.

        Args:
            step: number of the step, part of the seed of its mask.
            phase: `drawn`: the random mask of this step; `final`: the mask of the merged model.
            columns: tensor name -> λ [T].
        """
        with torch.inference_mode(False):
            self.draw(f"{phase} {step}" if phase == "drawn" else phase)
            mine = {name: columns[name] for name in self.adam.parameters}
            if self.steps[0] != mine:
                self.steps = (None, {})  # free the old ones first
                deltas = as_stored(self.block.vectors.deltas)
                made = {
                    name: summed(deltas[name], row).to(self.adam.parameters[name].dtype)
                    for name, row in mine.items()
                }
                self.steps = (mine, made)
            self.block.filled = ""  # the resident model is overwritten
            for name, step_of in self.steps[1].items():
                out, base = self.block.resident.arena[name], self.block.vectors.base[name]
                masked(out, base, step_of, self.drawn[1][name])
        for parameter in self.weights.values():
            parameter.requires_grad_(True)
            parameter.grad = None

    def run(self, activations: Activations, lessons: int = 1) -> Activations:
        """Run all segments of the resident model, which all `lessons` share."""
        for module in self.modules:
            activations = module(activations)
        return activations

    def draw(self, key: str) -> None:
        """Draw the mask of a step, or compute the final one; cached until the next."""
        if self.drawn[0] == key:
            return
        self.drawn = ("", {})
        found = {}
        for name, logits in self.adam.parameters.items():
            if key == "final":
                found[name] = mask_of(logits.detach(), self.options, name)
            else:
                numbers = drawn(logits.detach(), self.seed, f"{key} {name}")
                found[name] = relaxed(logits.detach(), numbers, self.options.temperature)
        self.drawn = (key, found)

    def gradients(self) -> dict[str, Tensor]:
        """∂L/∂θ of each tensor that has one; turns off the resident model's gradients."""
        found = {}
        for name, parameter in self.weights.items():
            if parameter.grad is not None:
                found[name] = parameter.grad
            parameter.grad = None
            parameter.requires_grad_(False)
        return found

    def columns(self) -> Tensor:
        """∂L/∂λ of each tensor of the block, in order: [1, T, G_block]."""
        seen, deltas = self.gradients(), as_stored(self.block.vectors.deltas)
        nothing = torch.zeros(1, len(self.block.vectors.tasks))
        found = [
            coefficient_gradient(seen[name], deltas[name], self.drawn[1][name]).cpu()
            if name in seen
            else nothing
            for name in self.adam.parameters
        ]
        return torch.stack(found, dim=2) if found else nothing[:, :, None][:, :, :0]

    def update(self, total: object) -> None:
        """One Adam step on the logits."""
        with torch.no_grad():
            found = {
                name: logits_gradient(
                    gradient,
                    self.steps[1][name],
                    self.drawn[1][name],
                    self.options.temperature,
                )
                for name, gradient in self.gradients().items()
            }
        self.adam.step(found)
