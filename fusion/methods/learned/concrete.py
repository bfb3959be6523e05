"""Concrete Subspace Learning: learn a mask over all parameters, shared by all tasks.

The mask is a relaxed Bernoulli variable with logits x. θ = θ₀ + m̂ ⊙ Σ_t λ_t τ_t, where the mask m
is sampled anew at every step and m̂ = m / mean(m) for each tensor. All tasks share m, so the
weighted sum of task vectors is computed first: one product, not T. Gradients are computed
explicitly, tensor by tensor; autograd keeps no graph over the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.errors import InputError
from fusion.merged_layers.functional import contract
from fusion.methods.learned.in_model import Compat, InModelPlan, MaskKind, MaskOptions
from fusion.methods.learned.steps import Shape, UnlabelledSplit
from fusion.task_vectors.coding import mix_tensor
from fusion.task_vectors.lazy import as_stored
from fusion.task_vectors.random_draws import key_of, uniform
from fusion.task_vectors.task_vectors import TaskVectors, accumulator

COEFFICIENTS = "coefficients"
"""Name of the coefficients λ [1, T, 1 or G] among the learned tensors; all others are mask logits,
by tensor name."""


def drawn(like: Tensor, seed: int, what: str) -> Tensor:
    """Uniform random numbers in (0, 1) with the shape, dtype and device of `like`.

    They depend on (seed, what) alone. `what` names step and tensor, so a sharded model draws the
    same numbers as a whole one, and other devices draw the same numbers too.
    """
    return uniform(like.shape, key_of(seed, what), dtype=like.dtype, device=like.device)


def relaxed(logits: Tensor, drawn: Tensor, temperature: float) -> Tensor:
    """Sample of the relaxed Bernoulli (Concrete) distribution: m = σ((logit(u) + x) / T).

    Args:
        logits: x.
        drawn: u, uniform in (0, 1); overwritten with the result.
        temperature: T.

    >>> relaxed(torch.zeros(2), torch.tensor([0.5, 0.9]), 1.0)
    tensor([0.5000, 0.9000])
    """
    return drawn.logit_().add_(logits).div_(temperature).sigmoid_()


def mask_of(logits: Tensor, options: MaskOptions, name: str) -> Tensor:
    """Mask of the merged model for one tensor, before division by its mean.

    `continuous`: a sample of the relaxed Bernoulli. `discrete`: a sample of the Bernoulli, 0 or 1,
    decided in float64, so that devices whose σ rounds differently agree. `expected`: σ(x), the mean
    of the latter, without sampling.
    """
    if options.kind == "expected":
        return logits.sigmoid()
    found = drawn(logits, options.seed, f"mask {name}")
    if options.kind == "discrete":
        return (found.double() < logits.double().sigmoid()).to(logits.dtype)
    return relaxed(logits, found, options.temperature)


def masked(out: Tensor, base: Tensor, step: Tensor, mask: Tensor) -> None:
    """out = θ₀ + m/mean(m) ⊙ step, rounded once; θ₀ if the whole mask is 0."""
    mean = mask.mean()
    scale = torch.where(mean > 0, mean.reciprocal(), torch.zeros_like(mean))
    out.copy_(torch.addcmul(base.to(step.dtype), mask * scale, step))


def summed(deltas: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Weighted sum Σ_t c_t τ_t of one tensor: [T, *shape] -> [*shape], in float32 (float64)."""
    dtype = accumulator(deltas.dtype)
    out = torch.empty(deltas.shape[1:], dtype=dtype, device=deltas.device)
    nothing = torch.zeros((), dtype=dtype, device=deltas.device).expand(out.shape)
    mix_tensor(out, nothing, deltas, coefficients)
    return out


def logits_gradient(gradient: Tensor, step: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Gradient of one tensor's mask logits, ∂L/∂x, from ∂L/∂θ; includes the mask's mean.

    With P = ∂L/∂θ ⊙ step and μ = mean(m): ∂L/∂x = (P − mean(P ⊙ m)/μ) ⊙ m(1 − m) / (T·μ).
    """
    product = gradient.to(step.dtype) * step
    mean = mask.mean()
    product.sub_((product * mask).mean() / mean)
    slope = torch.addcmul(mask, mask, mask, value=-1)
    return product.mul_(slope).div_(temperature * mean)


def coefficient_gradient(gradient: Tensor, deltas: Tensor, mask: Tensor) -> Tensor:
    """Gradient of the coefficients, ∂L/∂λ_t = ⟨∂L/∂θ ⊙ m/mean(m), τ_t⟩, of one tensor: [1, T]."""
    seen = gradient.to(mask.dtype) * (mask / mask.mean())
    return contract(seen[None], deltas)


def columns_of(coefficients: Tensor, groups: Sequence[str]) -> dict[str, list[float]]:
    """Tensor name -> coefficients [T], from λ [1, T, 1 or G]."""
    rows = coefficients[0].T.tolist()
    return dict(zip(groups, rows if len(rows) > 1 else rows * len(groups), strict=True))


def masked_merge(
    vectors: TaskVectors, learned: Mapping[str, Tensor], plan: InModelPlan
) -> dict[str, Tensor]:
    """Merged model of Concrete methods, θ = θ₀ + m̂ ⊙ Σ_t λ_t τ_t, from learned logits and λ.

    Args:
        vectors: base and task vectors of a model or a shard.
        learned: tensor name -> logits; and λ under the name `COEFFICIENTS`, if it was learned.
        plan: the training plan, with the kind of mask.

    Raises:
        InputError: logits of other tensors (the message names the first), or λ of another shape.
    """
    options = plan.options
    assert isinstance(options, MaskOptions)
    start = torch.full((1, len(vectors.tasks), 1), plan.scale)
    coefficients = learned.get(COEFFICIENTS, start)
    groups = len(vectors.groups)
    if coefficients.shape[:2] != start.shape[:2] or coefficients.shape[2] not in (1, groups):
        needed = f"[1, {len(vectors.tasks)}, 1 or {groups}]"
        raise InputError(f"mask: coefficients: shape {list(coefficients.shape)}; {needed} needed")
    if options.clamp:
        coefficients = coefficients.clamp(0, 1)
    columns = columns_of(coefficients, vectors.groups)
    stored = as_stored(vectors.deltas)

    def fill(name: str, out: Tensor) -> None:
        if name not in learned or learned[name].shape != out.shape:
            shape = list(learned[name].shape) if name in learned else "none"
            raise InputError(f"mask: tensor {name!r}: {shape}; {list(out.shape)} needed")
        step = summed(stored[name], columns[name])
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
    adapt_on: UnlabelledSplit = "fit",
    tasks_at_once: Annotated[int | None, Interval(ge=1)] = None,
    save_every: Annotated[int, Interval(ge=1)] = 500,
    compat: Compat = "paper",
) -> InModelPlan:
    """Concrete Task Arithmetic: learn a shared mask on the sum of task vectors, without labels.

    θ = θ₀ + m̂ ⊙ λΣ_t τ_t, where the logits x of m minimise Σ_tasks mean_batch H(softmax(logits)).
    m = σ((logit(u) + x)/T) is sampled anew at every step, and m̂ = m/mean(m) for each tensor. Adam
    on x, one logit for each element. λΣτ is computed once, so a step costs as much as with one
    task.

    Args:
        shape: tasks; tensors are not used.
        scale: λ, not learned. Default 0.3, FusionBench's.
        initial_logits: initial value of all x. Default 0.
        temperature: T. Default 0.5, FusionBench's.
        mask: mask of the merged model. `continuous` (default, the paper's): one more sample;
            `discrete`: zeros and ones (a tensor whose mask is all zeros stays θ₀); `expected`:
            σ(x), without sampling.
        mask_seed: seed of that sample.
        learning_rate: Adam's. Default 1e-3, FusionBench's.
        steps: default 2000, FusionBench's.
        batch_size: images of each task in a step. Default 16, as FusionBench's configuration
            states.
        adapt_on: split of the unlabelled images. Default `fit`; the paper uses the test split
            (`report`).
        tasks_at_once: tasks in one forward pass. Default: all.
        save_every: steps between checkpoints; each has the size of three models.
        compat: `fusionbench`: one image of each task in a step, whatever `batch_size`, as
            FusionBench does. Default `paper`.

    Source: Tang et al. 2023, arXiv:2312.06173; FusionBench's CLIP implementation. Deviations:
    entropy without epsilon; samples are seeded, by step and tensor.
    """
    return InModelPlan(
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
    adapt_on: UnlabelledSplit = "fit",
    tasks_at_once: Annotated[int | None, Interval(ge=1)] = None,
    save_every: Annotated[int, Interval(ge=1)] = 500,
    compat: Compat = "paper",
) -> InModelPlan:
    """Concrete AdaMerging: learn a shared mask first, then AdaMerging's coefficients under it.

    θ_k = θ₀,k + m̂_k ⊙ Σ_t λ_{t[,k]} τ_{t,k}. A step of the first stage: sample m and merge with m
    and the λ of the step before (at first `scale`). One Adam step from `scale` (rate
    `inner_learning_rate`, moments kept) along the gradient of λ gives λ'. Merge with λ' and the
    same m, and on new images take one Adam step on the mask's logits, with λ' fixed (first order).
    The second stage fixes one mask, starts λ at `scale`, and is AdaMerging.

    Args:
        shape: tasks and tensors.
        grouping: `layer` (default): a coefficient for each task and tensor; `task`: one for each
            task.
        scale: initial λ, also of each inner step. Default 0.3, FusionBench's.
        clamp: use clamp(λ, 0, 1) in forward passes (no gradient outside). Default false.
        initial_logits: see `concrete_task_arithmetic`.
        temperature: see `concrete_task_arithmetic`.
        mask: mask of the second stage and the merged model; see `concrete_task_arithmetic`.
        mask_seed: seed of its sample.
        learning_rate: Adam's, for the logits. Default 1e-3, FusionBench's.
        inner_learning_rate: Adam's, of the inner step. Default 1, FusionBench's.
        outer_learning_rate: Adam's, for λ in the second stage. Default 1e-3, FusionBench's.
        steps: of the first stage. Default 1000, FusionBench's.
        coefficient_steps: of the second stage. Default 1000, FusionBench's.
        batch_size: images of each task in a pass. Default 16, as FusionBench's configuration
            states.
        adapt_on: split of the unlabelled images. Default `fit`; the paper uses the test split
            (`report`).
        tasks_at_once: tasks in one forward pass. Default: all.
        save_every: steps between checkpoints; each has the size of three models.
        compat: `fusionbench`: one image of each task in a pass, whatever `batch_size`, as
            FusionBench does. Default `paper`.

    Source: Tang et al. 2023, arXiv:2312.06173, algorithm 1; FusionBench's CLIP implementation.
    Deviations: entropy without epsilon; samples are seeded, by step and tensor.
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
    return InModelPlan(
        options,
        scale,
        learning_rate,
        steps + coefficient_steps,
        1 if compat == "fusionbench" else batch_size,
        adapt_on,
        save_every,
    )
