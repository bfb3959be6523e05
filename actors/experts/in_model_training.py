"""Coordinator side of training and evaluating methods whose parameters are stored in the shards.

These are the routers of WE-MoE and the masks of Concrete Subspace Learning.

A step sends between processes: row numbers, activations and their gradients, losses, the gradients
of a router shared by all blocks, and ∂L/∂λ. Routers and mask logits are sent only at the beginning
and the end of a call.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from actors.artifacts.errors import ATTEMPTS, Forgotten
from actors.artifacts.in_model_state_file import dump_resident, learned_tensors, load_resident
from actors.artifacts.recipe import Recipe
from actors.cluster.metrics import count
from actors.data.task_rows import SAMPLES, Cuts, batches
from actors.experts.model_runner import ModelRunner, Predicted, completed
from actors.experts.unseen_tasks import adapted_role, learners
from actors.shards.adam import NamedAdam
from actors.shards.messages import Batch, Weights
from actors.shards.pipeline import Passes, run_1f1b
from actors.shards.requests import (
    AddGradients,
    BeginTraining,
    CoefficientGradients,
    EndTraining,
    LoadTraining,
    PrepareStep,
    ShardRequest,
    TrainingBackward,
    TrainingFinish,
    TrainingForward,
    TrainingTensors,
    UpdateParameters,
)
from fusion.errors import InputError
from fusion.logits.optimize import draw
from fusion.methods.learned.concrete import COEFFICIENTS, columns_of
from fusion.methods.learned.in_model import InModelPlan, MaskOptions, RouterOptions
from fusion.methods.learned.steps import Shape, chunked, not_finite, stacks
from fusion.registry import METHODS, InModel

Trained = tuple[bytes, list[dict[str, float]]]
"""The state after the last step, as a file, and task -> loss of each step."""


def plan_of(recipe: Recipe, tasks: Sequence[str], groups: Sequence[str]) -> InModelPlan:
    """The plan of a recipe's method: what it learns, with which options.

    Raises:
        InputError: a method without parameters in the shards, or wrong parameters.
    """
    row = METHODS.get(recipe.method)
    if not isinstance(row, InModel):
        raise InputError(f"{recipe.method}: nothing of it lives in shards")
    return row.plan(Shape(tuple(tasks), tuple(groups)), **recipe.params)


def train(
    runner: ModelRunner, recipe: Recipe, state: bytes | None, first: int, last: int, seed: int
) -> Trained:
    """Run the training steps [first, last).

    Args:
        runner: the model whose shards are trained.
        recipe: method and parameters.
        state: state after `first` steps; None: start.
        first: number of the first step.
        last: number of the step after the last.
        seed: of rows and masks; a step depends only on (seed, step) and the state.

    Raises:
        InputError: wrong parameters, a state of another method or pool, a loss that is not finite.
    """
    plan = plan_of(recipe, runner.tasks, runner.pipeline.groups)
    for left in reversed(range(ATTEMPTS)):
        steps = TrainingCall(runner, recipe, plan, seed)
        try:
            steps.begin(state, first)
            losses = [steps.step(step) for step in range(first, last)]
            return dump_resident(steps.tensors(), recipe.method, runner.tasks, last), losses
        except Forgotten:
            if not left:
                raise
        finally:
            with runner.filling:  # another call may be in the middle of its passes
                steps.everywhere(EndTraining(steps.key))
    raise AssertionError


class TrainingCall:
    """One call of `train`: sends requests to the shards of a replica, step by step."""

    def __init__(self, runner: ModelRunner, recipe: Recipe, plan: InModelPlan, seed: int) -> None:
        """Set up; sends nothing to the shards yet."""
        self.runner, self.recipe, self.plan, self.seed = runner, recipe, plan, seed
        self.pipeline, self.key = runner.pipeline, uuid.uuid4().hex
        self.role = adapted_role(runner.data, plan.adapt_on)
        names = learners(runner.data) if plan.steps else ()
        self.sizes = {name: runner.size(name, self.role) for name in names}
        self.coefficient_adam: NamedAdam | None = None
        """Coefficients λ with their moments, if λ is learned."""
        self.constant = torch.full((1, len(runner.tasks), 1), plan.scale)

    def everywhere(self, request: ShardRequest, *given: Any) -> list[Any]:
        """Send a request to all shards, then wait for all results."""
        asked = [self.pipeline.link.call(shard, request, *given) for shard in self.pipeline.shards]
        return [self.pipeline.link.get(each) for each in asked]

    # ------------------------------------------------------------------------------- the state

    def begin(self, state: bytes | None, first: int) -> None:
        """Start the training in all shards from the state after `first` steps."""
        method, options = self.recipe.method, self.plan.options
        params, precision = dict(self.recipe.params), self.runner.precisions.passes
        held = self.everywhere(BeginTraining(self.key, method, params, self.seed, precision))
        tensors: Mapping[str, Tensor] = {}
        if state is None and first:
            raise InputError(f"{method}: state: none; that after {first} steps needed")
        if state is not None:
            tensors, there = load_resident(state, method, self.runner.tasks)
            if there != first:
                raise InputError(f"{method}: state: after {there} steps; {first} needed")
            for shard, names in zip(self.pipeline.shards, held, strict=True):
                mine = set(names)
                part = {k: v for k, v in tensors.items() if k.partition("|")[0] in mine}
                request = LoadTraining(self.key, part, first)
                self.pipeline.link.get(self.pipeline.link.call(shard, request))
        if isinstance(options, MaskOptions) and options.grouping is not None:
            self.start_coefficients(options, first >= options.mask_steps)
            within = first - (options.mask_steps if first >= options.mask_steps else 0)
            if within and self.coefficient_adam is not None:
                self.coefficient_adam.load(tensors, within)

    def start_coefficients(self, options: MaskOptions, outer: bool) -> None:
        """Set λ to its initial value, for the first stage or the second (`outer`)."""
        groups = len(self.pipeline.groups) if options.grouping == "layer" else 1
        start = torch.full((1, len(self.runner.tasks), groups), self.plan.scale)
        rate = options.outer_rate if outer else options.inner_rate
        self.coefficient_adam = NamedAdam({COEFFICIENTS: nn.Parameter(start)}, rate)

    def tensors(self) -> dict[str, Tensor]:
        """All learned parameters, with moments."""
        found = {
            k: v for part in self.everywhere(TrainingTensors(self.key)) for k, v in part.items()
        }
        return found if self.coefficient_adam is None else found | self.coefficient_adam.tensors()

    # --------------------------------------------------------------------------------- a step

    def step(self, step: int) -> dict[str, float]:
        """One step: task -> loss.

        Raises:
            InputError: a loss is not finite; no parameter was updated.
        """
        options = self.plan.options
        with self.runner.filling:
            if isinstance(options, RouterOptions):
                return self.router_step(step, options)
            if options.grouping is None:
                return self.mask_step(step, step, self.constant)
            if step == options.mask_steps:
                self.start_coefficients(options, True)
            if step >= options.mask_steps:
                return self.outer_step(step, options)
            return self.meta_step(step, options)

    def router_step(self, step: int, options: RouterOptions) -> dict[str, float]:
        """One step on routers: consecutive tasks are stacked, each with a model of its own."""
        self.everywhere(PrepareStep(self.key, step, "", None))
        together = stacks(self.sizes, self.plan.batch_size, self.runner.stacked)
        losses = self.passes(step, step, together)
        total: Any = None
        if options.shared:
            for shard in reversed(self.pipeline.shards):
                total = self.pipeline.link.call(shard, AddGradients(self.key), total)
        self.everywhere(UpdateParameters(self.key), total)
        return losses

    def mask_step(self, step: int, rows: int, coefficients: Tensor) -> dict[str, float]:
        """One step on mask logits, with given coefficients."""
        self.prepare(step, "drawn", coefficients)
        losses = self.passes(step, rows, self.at_once)
        self.everywhere(UpdateParameters(self.key), None)
        return losses

    def meta_step(self, step: int, options: MaskOptions) -> dict[str, float]:
        """One look-ahead step on coefficients, then one on mask logits with them, on other rows."""
        assert self.coefficient_adam is not None
        coefficients = self.coefficient_adam.parameters[COEFFICIENTS]
        self.prepare(step, "drawn", coefficients)
        self.passes(step, 2 * step, self.at_once)
        gradient = self.coefficient_gradient(coefficients, options)
        with torch.no_grad():
            coefficients.fill_(self.plan.scale)
        self.coefficient_adam.step({COEFFICIENTS: gradient})
        return self.mask_step(step, 2 * step + 1, coefficients)

    def outer_step(self, step: int, options: MaskOptions) -> dict[str, float]:
        """One step on coefficients, with the final mask."""
        assert self.coefficient_adam is not None
        coefficients = self.coefficient_adam.parameters[COEFFICIENTS]
        self.prepare(step, "final", coefficients)
        losses = self.passes(step, options.mask_steps + step, self.at_once)
        gradient = self.coefficient_gradient(coefficients, options)
        self.coefficient_adam.step({COEFFICIENTS: gradient})
        return losses

    def prepare(self, step: int, phase: str, coefficients: Tensor) -> None:
        """Merge with a mask and coefficients in all shards."""
        options = self.plan.options
        assert isinstance(options, MaskOptions)
        used = coefficients.detach()
        used = used.clamp(0, 1) if options.clamp else used
        columns = columns_of(used, self.pipeline.groups)
        self.everywhere(PrepareStep(self.key, step, phase, columns))

    def coefficient_gradient(self, coefficients: Tensor, options: MaskOptions) -> Tensor:
        """∂L/∂λ over all shards, in the order of the model's tensors."""
        whole = torch.cat(self.everywhere(CoefficientGradients(self.key)), dim=2)[
            :, :, self.pipeline.order
        ]
        if options.grouping == "task":
            whole = whole.sum(2, keepdim=True)
        if options.clamp:
            whole = whole * ((coefficients >= 0) & (coefficients <= 1))
        return whole

    @property
    def at_once(self) -> list[list[str]]:
        """Tasks of each forward pass."""
        options = self.plan.options
        assert isinstance(options, MaskOptions)
        return chunked(list(self.sizes), options.tasks_at_once or len(self.sizes))

    # ------------------------------------------------------------------------------- the passes

    def passes(self, step: int, at: int, together: Sequence[Sequence[str]]) -> dict[str, float]:
        """Forward and backward passes of all tasks; gradients accumulate in the shards.

        Args:
            step: number of the step, for messages.
            at: number of the batch of rows of each task.
            together: tasks of each pass.
        """
        parts = {
            task: self.runner.batch(task, self.role, rows).parts[0]
            for task, rows in self.rows(at).items()
        }
        averaged = self.runner.averaged(parts)
        items = [
            Batch(tuple(parts[task] for task in names), averaged=averaged) for names in together
        ]
        call, shards = self.pipeline.link.call, self.pipeline.shards
        losses: dict[int, Any] = {}

        def forward(stage: int, item: int, activations: Any) -> Any:
            request = TrainingForward(self.key, f"{at} {item}", len(items[item].parts))
            return call(shards[stage], request, activations)

        def backward(stage: int, item: int, activations: Any, back: Any) -> Any:
            return call(shards[stage], TrainingBackward(self.key, f"{at} {item}"), back)

        def finish(item: int, activations: Any) -> Any:
            request = TrainingFinish(self.key, f"{at} {item}", items[item])
            losses[item], back = call(shards[-1], request, activations)
            return back

        ends = run_1f1b(len(shards), items, Passes(forward, backward, finish))
        for end in ends:
            self.pipeline.link.get(end)  # raises if a shard lost a pass
        found: dict[str, float] = {}
        for item, batch in enumerate(items):
            found |= self.pipeline.link.get(losses[item])
            count("images", batch.size, use="learn")
        bad = next((task for task, loss in found.items() if loss - loss != 0), None)
        if bad is not None:
            raise not_finite(step, bad, found[bad], self.plan.learning_rate)
        return found

    def rows(self, at: int) -> dict[str, Tensor]:
        """Task -> rows of its `at`-th batch."""
        return {
            task: draw(size, self.plan.batch_size, at, self.seed + 7919 * index)
            for index, (task, size) in enumerate(self.sizes.items())
        }


# ---------------------------------------------------------------------------------- evaluation


def opened(runner: ModelRunner, recipe: Recipe) -> tuple[Weights, InModelPlan]:
    """Weights with the learned parameters.

    Raises:
        InputError: no learned parameters, or those of another method or pool.
    """
    plan = plan_of(recipe, runner.tasks, runner.pipeline.groups)
    tensors = learned_tensors(recipe, runner.tasks)
    parcel = runner.pipeline.link.put(tensors)
    return runner.pipeline.weights(recipe.method, dict(recipe.params), learned=parcel), plan


def routed_logits(
    runner: ModelRunner, recipe: Recipe, names: Sequence[str], role: str
) -> dict[str, Predicted]:
    """Task -> predictions with routed MLPs: one model per sample, or per group of samples."""
    weights, plan = opened(runner, recipe)
    assert isinstance(plan.options, RouterOptions)
    together, found = plan.options.together, {}

    def embed(given: Iterable[tuple[Tensor | slice, Batch]]) -> Iterator[Tensor]:
        return runner.pipeline.embed_routed(weights, (batch for _, batch in given))

    with runner.filling:
        for task in names:
            # Rows that share a routing are consecutive ones, as a loader gives them.
            shared = Cuts(list(batches(runner.size(task, role), together))) if together else None
            cuts = shared or runner.cuts(task, role, SAMPLES)
            given = (runner.batch(task, role, rows) for rows in cuts.parts)
            parts = runner.pipeline.embed_routed(weights, given)
            found[task] = runner.headed(task, parts, cuts)
            if not together:
                found[task] = completed(runner, task, role, found[task], embed)
    return found
