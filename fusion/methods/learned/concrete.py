"""Concrete subspaces: a shared mask over all parameters, learned as a relaxed Bernoulli.

With logits x, θ = θ₀ + m̂ ⊙ Σ_t λ_t τ_t, where m is drawn anew at every step and m̂ = m / mean(m),
tensor by tensor. All tasks share m, so the tasks' sum is made first: one product, not T. Gradients
are written out tensor by tensor; no graph over the model is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.errors import InputError
from fusion.merged_layers.functional import contract
from fusion.methods.learned.in_model import Compat, MaskKind, MaskOptions, ResidentCourse
from fusion.methods.learned.steps import Shape, Unlabelled
from fusion.task_vectors.coding import mix_tensor
from fusion.task_vectors.random_draws import key_of, uniform
from fusion.task_vectors.task_vectors import TaskVectors, accumulator

COEFFICIENTS = "coefficients"
"""The name of λ [1, T, 1 or G] among what was learned; the others are tensors' logits."""


def drawn(like: Tensor, seed: int, what: str) -> Tensor:
    """Uniform numbers in (0, 1) of a tensor's shape, by (seed, what) alone, on its device.

    `what` names step and tensor, so a model that is cut draws what the whole one draws, and a mask
    drawn on one device can be drawn again on another.
    """
    return uniform(like.shape, key_of(seed, what), dtype=like.dtype, device=like.device)


def relaxed(logits: Tensor, drawn: Tensor, temperature: float) -> Tensor:
    """m = σ((logit(u) + x) / T): a sample of the relaxed Bernoulli.

    >>> relaxed(torch.zeros(2), torch.tensor([0.5, 0.9]), 1.0)
    tensor([0.5000, 0.9000])
    """
    return drawn.logit_().add_(logits).div_(temperature).sigmoid_()


def mask_of(logits: Tensor, options: MaskOptions, name: str) -> Tensor:
    """The mask of a merged model, not yet rescaled.

    `continuous`: one sample of the relaxed Bernoulli; `discrete`: one of the Bernoulli, 0 or 1,
    decided in float64, so that devices whose σ rounds otherwise decide alike; `expected`: σ(x), the
    mean of that one: nothing is drawn.
    """
    if options.kind == "expected":
        return logits.sigmoid()
    found = drawn(logits, options.seed, f"mask {name}")
    if options.kind == "discrete":
        return (found.double() < logits.double().sigmoid()).to(logits.dtype)
    return relaxed(logits, found, options.temperature)


def masked(out: Tensor, base: Tensor, step: Tensor, mask: Tensor) -> None:
    """out = θ₀ + m/mean(m) ⊙ step, rounded once; θ₀ where the whole mask is 0."""
    mean = mask.mean()
    scale = torch.where(mean > 0, mean.reciprocal(), torch.zeros_like(mean))
    out.copy_(torch.addcmul(base.to(step.dtype), mask * scale, step))


def summed(deltas: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Σ_t c_t τ_t of one tensor: [T, *shape] -> [*shape], in float32 (float64)."""
    dtype = accumulator(deltas.dtype)
    out = torch.empty(deltas.shape[1:], dtype=dtype, device=deltas.device)
    nothing = torch.zeros((), dtype=dtype, device=deltas.device).expand(out.shape)
    mix_tensor(out, nothing, deltas, coefficients)
    return out


def logits_gradient(gradient: Tensor, step: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """∂L/∂x of one tensor from ∂L/∂θ, through the mask's mean.

    With P = ∂L/∂θ ⊙ step and μ = mean(m): ∂L/∂x = (P − mean(P ⊙ m)/μ) ⊙ m(1 − m) / (T·μ).
    """
    product = gradient.to(step.dtype) * step
    mean = mask.mean()
    product.sub_((product * mask).mean() / mean)
    slope = torch.addcmul(mask, mask, mask, value=-1)
    return product.mul_(slope).div_(temperature * mean)


def coefficient_gradient(gradient: Tensor, deltas: Tensor, mask: Tensor) -> Tensor:
    """∂L/∂λ_t = ⟨∂L/∂θ ⊙ m/mean(m), τ_t⟩ of one tensor: [1, T]."""
    seen = gradient.to(mask.dtype) * (mask / mask.mean())
    return contract(seen[None], deltas)


def columns_of(coefficients: Tensor, groups: Sequence[str]) -> dict[str, list[float]]:
    """Tensor name -> coefficients [T], of λ [1, T, 1 or G]."""
    rows = coefficients[0].T.tolist()
    return dict(zip(groups, rows if len(rows) > 1 else rows * len(groups), strict=True))


def masked_merge(
    vectors: TaskVectors, learned: Mapping[str, Tensor], course: ResidentCourse
) -> dict[str, Tensor]:
    """θ = θ₀ + m̂ ⊙ Σ_t λ_t τ_t with the mask that the options ask for.

    Raises:
        InputError: logits of other tensors (the line names the first), or λ of another shape.
    """
    options = course.options
    assert isinstance(options, MaskOptions)
    start = torch.full((1, len(vectors.tasks), 1), course.scale)
    coefficients = learned.get(COEFFICIENTS, start)
    groups = len(vectors.groups)
    if coefficients.shape[:2] != start.shape[:2] or coefficients.shape[2] not in (1, groups):
        needed = f"[1, {len(vectors.tasks)}, 1 or {groups}]"
        raise InputError(f"mask: coefficients: shape {list(coefficients.shape)}; {needed} needed")
    if options.clamp:
        coefficients = coefficients.clamp(0, 1)
    columns = columns_of(coefficients, vectors.groups)

    def fill(name: str, out: Tensor) -> None:
        if name not in learned or learned[name].shape != out.shape:
            shape = list(learned[name].shape) if name in learned else "none"
            raise InputError(f"mask: tensor {name!r}: {shape}; {list(out.shape)} needed")
        deltas = vectors.deltas[name]
        step = summed(deltas, columns[name])
        logits = learned[name].to(device=step.device, dtype=step.dtype)
        masked(out, vectors.base[name], step, mask_of(logits, options, name))

    return vectors.build(fill)


def concrete_task_arithmetic(
    shape: Shape,
    *,
    scale: float = 0.3,
    initial_logits: float = 0.0,
    temperature: Annotated[float, Interval(gt=0)] = 0.5,
    mask: MaskKind = "continuous",
    mask_seed: Annotated[int, Interval(ge=0)] = 0,
    learning_rate: Annotated[float, Interval(gt=0)] = 1e-3,
    steps: Annotated[int, Interval(ge=0)] = 2000,
    batch_size: Annotated[int, Interval(ge=1)] = 16,
    adapt_on: Unlabelled = "fit",
    tasks_at_once: Annotated[int | None, Interval(ge=1)] = None,
    save_every: Annotated[int, Interval(ge=1)] = 500,
    compat: Compat = "paper",
) -> ResidentCourse:
    """θ = θ₀ + m̂ ⊙ λΣ_t τ_t, the logits of m minimising Σ_tasks mean_batch H(softmax(logits)).

    m = σ((logit(u) + x)/T) is drawn anew at every step, m̂ = m/mean(m) tensor by tensor; Adam on x,
    one logit an element. λΣτ is made once: a step costs as much as one task's.

    Args:
        shape: tasks; no tensor is looked at.
        scale: λ, not learned. Default 0.3: FusionBench.
        initial_logits: all of x at the start.
        temperature: T.
        mask: of the merged model: `continuous`, one more sample, the paper's; `discrete`, zeros
            and ones (a tensor of zeros alone stays θ₀); `expected`: σ(x), nothing drawn.
        mask_seed: of that sample.
        learning_rate: Adam's.
        steps: default 2000.
        batch_size: images a task and step. Default 16: what FusionBench's file says.
        adapt_on: whose unlabelled images are learned from; the paper: the test split (`report`).
        tasks_at_once: how many tasks go through one forward pass. Default: all.
        save_every: steps between checkpoints, each of three models' size.
        compat: `fusionbench`: one image a task and step, whatever `batch_size`, as it does.

    Deviations: entropy without epsilon; drawing is seeded, by step and tensor.

    Source: Tang et al. 2023, arXiv:2312.06173; FusionBench's CLIP implementation.
    """
    return ResidentCourse(
        MaskOptions(initial_logits, temperature, mask, mask_seed, tasks_at_once=tasks_at_once),
        scale,
        learning_rate,
        steps,
        1 if compat == "fusionbench" else batch_size,
        adapt_on,
        save_every,
    )


def concrete_adamerging(
    shape: Shape,
    *,
    grouping: Literal["layer", "task"] = "layer",
    scale: float = 0.3,
    clamp: bool = False,
    initial_logits: float = 0.0,
    temperature: Annotated[float, Interval(gt=0)] = 0.5,
    mask: MaskKind = "continuous",
    mask_seed: Annotated[int, Interval(ge=0)] = 0,
    learning_rate: Annotated[float, Interval(gt=0)] = 1e-3,
    inner_learning_rate: Annotated[float, Interval(gt=0)] = 1.0,
    outer_learning_rate: Annotated[float, Interval(gt=0)] = 1e-3,
    steps: Annotated[int, Interval(ge=0)] = 1000,
    coefficient_steps: Annotated[int, Interval(ge=0)] = 1000,
    batch_size: Annotated[int, Interval(ge=1)] = 16,
    adapt_on: Unlabelled = "fit",
    tasks_at_once: Annotated[int | None, Interval(ge=1)] = None,
    save_every: Annotated[int, Interval(ge=1)] = 500,
    compat: Compat = "paper",
) -> ResidentCourse:
    """θ_k = θ₀,k + m̂_k ⊙ Σ_t λ_{t[,k]} τ_{t,k}: a mask is learned first, then λ under it.

    A step of the first stage: draw m; merge with m and the λ of the step before (at first
    `scale`); from `scale`, one step of Adam (rate `inner_learning_rate`, moments kept) along that
    gradient gives λ'; merge with λ' and the same m, and on fresh images take one step of Adam on
    the mask's logits, λ' being held (first order). The second stage fixes one mask, starts λ at
    `scale` and is AdaMerging.

    Args:
        shape: tasks and tensors.
        grouping: `layer`: a coefficient a task and tensor; `task`: one a task.
        scale: λ at the start, and where each inner step starts. Default 0.3: FusionBench.
        clamp: use clamp(λ, 0, 1) in forward passes (no gradient outside).
        initial_logits: see `concrete_task_arithmetic`.
        temperature: see `concrete_task_arithmetic`.
        mask: of the second stage and the merged model; see `concrete_task_arithmetic`.
        mask_seed: of its sample.
        learning_rate: Adam's, of logits.
        inner_learning_rate: Adam's, of the inner step. Default 1: FusionBench.
        outer_learning_rate: Adam's, of λ in the second stage. Default 1e-3: FusionBench.
        steps: of the first stage. Default 1000.
        coefficient_steps: of the second stage. Default 1000.
        batch_size: images a task and pass. Default 16: what FusionBench's file says.
        adapt_on: whose unlabelled images are learned from; the paper: the test split (`report`).
        tasks_at_once: how many tasks go through one forward pass. Default: all.
        save_every: steps between checkpoints, each of three models' size.
        compat: `fusionbench`: one image a task and pass, whatever `batch_size`, as it does.

    Deviations: entropy without epsilon; drawing is seeded, by step and tensor.

    Source: Tang et al. 2023, arXiv:2312.06173, algorithm 1; FusionBench's CLIP implementation.
    """
    options = MaskOptions(
        initial_logits,
        temperature,
        mask,
        mask_seed,
        grouping,
        clamp,
        inner_learning_rate,
        outer_learning_rate,
        steps,
        tasks_at_once,
    )
    return ResidentCourse(
        options,
        scale,
        learning_rate,
        steps + coefficient_steps,
        1 if compat == "fusionbench" else batch_size,
        adapt_on,
        save_every,
    )
