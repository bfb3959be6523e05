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
    """How many models went into it after the first."""
    shadow: Mapping[str, Tensor]
    """name -> running average, at least float32; written in place by the next update."""
    latest: Mapping[str, Tensor]
    """What is not averaged, of the last model: integer buffers and batch-norm statistics."""


def started(weights: StateDict) -> Average:
    """The average of one model: a copy of it in float32 (float64 where it is)."""
    shadow = {
        name: tensor.detach().to(accumulator(tensor.dtype), copy=True)
        for name, tensor in weights.items()
        if averaged(name, tensor)
    }
    return Average(0, shadow, others(weights))


def averaged(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a weight."""
    return tensor.is_floating_point() and not is_batch_statistic(name)


def others(weights: StateDict) -> dict[str, Tensor]:
    """Copies of what is not averaged."""
    return {
        name: tensor.detach().clone()
        for name, tensor in weights.items()
        if not averaged(name, tensor)
    }


def ema_decay(updates: int, decay: float = 0.999, *, warm_up: bool = True) -> float:
    """d_t = min(d, (1 + t)/(10 + t)) for the t-th update, t from 0; d without warm-up.

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
    """θ̄ ← d_t·θ̄ + (1 − d_t)·θ, in place in the shadow.

    Written θ̄ += (1 − d)(θ − θ̄): a constant run stays what it is, to the bit.

    Raises:
        InputError: a decay outside [0, 1), or weights of another model.
    """
    return moved(average, weights, 1 - ema_decay(average.updates, decay, warm_up=warm_up))


def swa(average: Average, weights: StateDict) -> Average:
    """θ̄ ← θ̄ + (θ − θ̄)/(n + 1), n models being in it: the plain mean. In place in the shadow.

    Batch-norm statistics are those of the last model, and stale: `reestimate_batchnorm`.

    Raises:
        InputError: weights of another model.

    Source: Izmailov et al. 2018, arXiv:1803.05407, Algorithm 1.
    """
    return moved(average, weights, 1 / (average.updates + 2))


def moved(average: Average, weights: StateDict, share: float) -> Average:
    """θ̄ += share·(θ − θ̄)."""
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
    """The averaged model, in the names, order and dtypes of `like`; rounded once, copied."""
    held = {**average.shadow, **average.latest}
    return {name: held[name].to(tensor.dtype, copy=True) for name, tensor in like.items()}


def batchnorms(module: nn.Module) -> dict[str, _BatchNorm]:
    """name -> batch-norm layer of a module."""
    return {name: part for name, part in module.named_modules() if isinstance(part, _BatchNorm)}


def has_batchnorm(module: nn.Module) -> bool:
    """Whether a fused model's statistics go stale: some batch-norm layer keeps running ones."""
    return any(part.running_mean is not None for part in batchnorms(module).values())


def freeze_batchnorm(module: nn.Module) -> int:
    """Put batch-norm layers in eval mode; returns how many there are.

    Running statistics then stay as they are; scale and shift still learn. To be called after
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
    """Make running mean and variance again from data, in place; returns the samples seen.

    Layers are reset, then momentum_t = b_t/(n_{t−1} + b_t): the mean over samples of the batches'
    statistics, so that a short last batch counts for what it is (torch's `momentum=None` weighs
    batches equally). Only batch-norm layers are in train mode; dropout is not. Modes and momenta
    are put back, also where a batch fails; then the old statistics are, too.

    The variance between batches is not in it: use large batches, of at least some 10 000 images
    in all, prepared as in training.

    Args:
        module: the fused model; called without gradients.
        batches: what `forward` takes: here, tensors [b, …].
        forward: default: the module itself.
        size: samples in a batch; default: its length.

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
    """Reset `layers` and put only them in train mode; put back what was, at the end."""
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
