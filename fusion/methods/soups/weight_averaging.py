"""Weight averaging during training (EMA, SWA), and re-estimation of batch-norm statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fusion.errors import InputError
from fusion.task_vectors.task_vectors import StateDict, accumulator, is_batch_statistic


@dataclass(frozen=True, eq=False)
class Average:
    """A running average of the weights of one run."""

    updates: int
    """Number of models averaged, after the first."""
    shadow: Mapping[str, Tensor]
    """Tensor name -> running average, at least float32; the next update writes to it in place."""
    latest: Mapping[str, Tensor]
    """Tensors of the last model that are not averaged: integer buffers and batch-norm
    statistics."""


def started(weights: StateDict) -> Average:
    """Start an average with one model, copied to float32 (float64 if it is)."""
    shadow = {
        name: tensor.detach().to(accumulator(tensor.dtype), copy=True)
        for name, tensor in weights.items()
        if averaged(name, tensor)
    }
    return Average(0, shadow, others(weights))


def averaged(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a weight, and so is averaged."""
    return tensor.is_floating_point() and not is_batch_statistic(name)


def others(weights: StateDict) -> dict[str, Tensor]:
    """Copies of the tensors that are not averaged."""
    return {
        name: tensor.detach().clone()
        for name, tensor in weights.items()
        if not averaged(name, tensor)
    }


def ema_decay(updates: int, decay: float = 0.999, *, warm_up: bool = True) -> float:
    """Decay of the t-th EMA update with warm-up: min(d, (1 + t)/(10 + t)), t from 0.

    Args:
        updates: t.
        decay: d, in [0, 1). Default 0.999.
        warm_up: False: always d. Default true.

    Raises:
        InputError: a decay outside [0, 1).

    >>> ema_decay(0), ema_decay(8, 0.2), ema_decay(0, warm_up=False)
    (0.1, 0.2, 0.999)
    """
    if not 0 <= decay < 1:
        raise InputError(f"decay: {decay!r}; float in [0, 1) allowed")
    return min(decay, (1 + updates) / (10 + updates)) if warm_up else decay


def ema(
    average: Average, weights: StateDict, *, decay: float = 0.999, warm_up: bool = True
) -> Average:
    """Exponential moving average: θ̄ ← d_t·θ̄ + (1 − d_t)·θ, in place in the shadow.

    Computed as θ̄ += (1 − d)(θ − θ̄), so constant weights do not change by a bit.

    Raises:
        InputError: a decay outside [0, 1), or weights of another model.
    """
    return moved(average, weights, 1 - ema_decay(average.updates, decay, warm_up=warm_up))


def swa(average: Average, weights: StateDict) -> Average:
    """Stochastic weight averaging: θ̄ ← θ̄ + (θ − θ̄)/(n + 1), the mean of all models; in place.

    Batch-norm statistics are those of the last model and do not fit the average; use
    `reestimate_batchnorm`.

    Raises:
        InputError: weights of another model.

    Source: Izmailov et al. 2018, arXiv:1803.05407, Algorithm 1.
    """
    return moved(average, weights, 1 / (average.updates + 2))


def moved(average: Average, weights: StateDict, share: float) -> Average:
    """Move the average towards the weights: θ̄ += share·(θ − θ̄).

    Raises:
        InputError: weights of another model.
    """
    names = {name for name, tensor in weights.items() if averaged(name, tensor)}
    odd = sorted(names ^ set(average.shadow))
    if odd:
        raise InputError(f"tensor {odd[0]!r}: not in both the average and the model")
    for name, shadow in average.shadow.items():
        if weights[name].shape != shadow.shape:
            raise InputError(
                f"tensor {name!r}: shape {list(weights[name].shape)};"
                f" the average has {list(shadow.shape)}"
            )
    for name, shadow in average.shadow.items():
        shadow.lerp_(weights[name].detach().to(shadow), share)
    return Average(average.updates + 1, average.shadow, others(weights))


def result(average: Average, like: StateDict) -> dict[str, Tensor]:
    """The averaged model with the names, order and dtypes of `like`; rounded once, copied."""
    held = {**average.shadow, **average.latest}
    return {name: held[name].to(tensor.dtype, copy=True) for name, tensor in like.items()}


def batchnorms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Name -> batch-norm layer of a module."""
    return {name: part for name, part in module.named_modules() if isinstance(part, _BatchNorm)}


def has_batchnorm(module: nn.Module) -> bool:
    """Whether batch-norm layers keep running statistics, which averaging invalidates."""
    return any(part.running_mean is not None for part in batchnorms(module).values())


def freeze_batchnorm(module: nn.Module) -> int:
    """Put batch-norm layers in eval mode; returns their number.

    Running statistics then stay unchanged, while scale and shift are still trained. Call it after
    every `module.train()`, which undoes it.
    """
    layers = batchnorms(module)
    for part in layers.values():
        part.eval()
    return len(layers)


def reestimate_batchnorm(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[Any], object] | None = None,
    size: Callable[[Any], int] = len,
) -> int:
    """Recompute running mean and variance of batch-norm layers from data, in place.

    Layers are reset, then updated with momentum_t = b_t/(n_{t−1} + b_t). This gives the mean over
    samples of the batches' statistics, so a short last batch has the right weight (torch's
    `momentum=None` weighs batches equally). Only batch-norm layers are in train mode; dropout is
    not active. Modes and momenta are restored; if a batch fails, the old statistics are restored
    too.

    The variance between batches is not included, so use large batches, of at least 10 000 images in
    total, prepared as in training.

    Args:
        module: the fused model; called without gradients.
        batches: inputs of `forward`, for instance tensors [b, …].
        forward: default: the module itself.
        size: number of samples in a batch. Default: its length.

    Returns:
        The number of samples.

    Raises:
        InputError: no batches, an empty one, or statistics that are not finite.

    Source: Izmailov et al. 2018, arXiv:1803.05407, §3.2 and its code.
    """
    layers = {name: p for name, p in batchnorms(module).items() if p.running_mean is not None}
    seen = 0
    with torch.no_grad(), measuring(module, layers):
        for batch in batches:
            count = size(batch)
            if count < 1:
                raise InputError("batch norm: an empty batch")
            for part in layers.values():
                part.momentum = count / (seen + count)
            (forward or module)(batch)
            seen += count
        if not seen:
            raise InputError("batch norm: no batches to take statistics from")
        for name, part in layers.items():
            assert part.running_mean is not None
            assert part.running_var is not None
            if not bool((part.running_mean.isfinite() & part.running_var.isfinite()).all()):
                raise InputError(f"batch norm {name!r}: the statistics of the data are NaN or Inf")
    return seen


@contextmanager
def measuring(module: nn.Module, layers: Mapping[str, _BatchNorm]) -> Iterator[None]:
    """Context manager: reset `layers`, with only them in train mode; restores modes at the end."""
    modes = {part: part.training for part in module.modules()}
    momenta = {part: part.momentum for part in layers.values()}
    kept = {
        part: {name: buffer.clone() for name, buffer in part.named_buffers(recurse=False)}
        for part in layers.values()
    }
    try:
        module.eval()
        for part in layers.values():
            part.train()
            part.reset_running_stats()
        yield
    except BaseException:
        for part, buffers in kept.items():
            for name, buffer in buffers.items():
                part.get_buffer(name).copy_(buffer)
        raise
    finally:
        for one, mode in modes.items():
            one.training = mode
        for part, momentum in momenta.items():
            part.momentum = momentum
