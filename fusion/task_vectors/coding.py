"""Codings (coefficients of task vectors) and the kernel that merges weights with them.

Axes: B samples (1: one static model), T tasks, G groups of tensors that share a coefficient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.task_vectors.lazy import weighed
from fusion.task_vectors.low_rank import LowRank, Zeros
from fusion.task_vectors.task_vectors import TaskVectors, accumulator

Coding: TypeAlias = Tensor
"""[B, T, G]: B = 1 one static model, G = 1 task-wise, G = number of tensors layer-wise."""

CONTIGUOUS = torch.contiguous_format

CHUNK = 1 << 20
"""Elements mixed at a time on a CPU: 4 MiB of float32, so that the running sum stays in cache.
Smaller chunks are no faster on an idle machine, and on a busy one torch's threads wait for each
other at each of their operations."""


def one_hot(tasks: Sequence[str], task: str) -> Coding:
    """One-hot coding [1, T, 1]: the merged model is expert `task`.

    >>> one_hot(("a", "b"), "b").flatten().tolist()
    [0.0, 1.0]
    """
    coding = torch.zeros(1, len(tasks), 1)
    coding[0, tasks.index(task), 0] = 1.0
    return coding


def sole(coding: Coding) -> int | None:
    """The index of the expert that a one-hot coding selects; None for any other coding.

    >>> sole(one_hot(("a", "b"), "b")), sole(torch.full((1, 2, 1), 0.5))
    (1, None)
    """
    if coding.shape[0] != 1:
        return None
    at = int(coding[0, :, 0].argmax())
    hot = torch.zeros_like(coding)
    hot[:, at] = 1.0
    return at if torch.equal(coding, hot) else None


def mix(vectors: TaskVectors, coding: Coding) -> dict[str, Tensor]:
    """θ_k = θ₀,k + Σ_t c_{t,g(k)} τ_{t,k} for a static coding [1, T, G].

    G = 1 is one coefficient a task; G = the number of floating-point tensors of the whole model
    is one a task and tensor, in the order of `vectors.groups`.

    Raises:
        InputError: a coding of another shape.
    """
    tasks, groups = len(vectors.tasks), len(vectors.groups)
    if coding.ndim != 3 or coding.shape[:2] != (1, tasks):
        raise InputError(f"coding: shape {list(coding.shape)}; [1, {tasks}, G] needed")
    if coding.shape[2] not in (1, groups):
        raise InputError(f"coding: {coding.shape[2]} groups; 1 or {groups} (tensors) allowed")
    columns = coding[0].T.tolist()  # [G][T], as Python floats: exact, and no host sync in the loop
    if len(columns) == 1:
        columns *= groups
    column = dict(zip(vectors.groups, columns, strict=True))

    def fill(name: str, out: Tensor) -> None:
        coefficients = column[name]
        deltas = weighed(vectors.deltas, name, coefficients)
        mix_tensor(out, vectors.base[name], deltas, coefficients)

    return vectors.build(fill)


def leaves(names: tuple[str, ...], groups: tuple[str, ...], coding: Tensor) -> dict[str, Tensor]:
    """Tensor name -> its column [M, T] of a coding [M, T, G], each a leaf of its own.

    Gradients of single columns, added up afterwards in a fixed order, are the same bits however a
    model is cut into shards.
    """
    shared = coding.shape[2] == 1
    at = {name: index for index, name in enumerate(groups)}
    return {
        name: coding[:, :, 0 if shared else at[name]].detach().clone().requires_grad_()
        for name in names
    }


def check_coding(coding: Tensor, tasks: int, groups: int, batch: int) -> None:
    """Raise InputError where a coding fits neither the task vectors nor the batch."""
    fits = coding.ndim == 3 and coding.shape[0] in (1, batch) and coding.shape[1] == tasks
    if not fits or coding.shape[2] not in (1, groups):
        raise InputError(
            f"coding: shape {list(coding.shape)}; [1 or {batch}, {tasks}, 1 or {groups}] needed"
        )


def mix_tensor(
    out: Tensor,
    base: Tensor,
    deltas: Tensor | LowRank | Zeros,
    coefficients: Sequence[float],
    *,
    scale: float = 1.0,
    base_scale: float = 1.0,
) -> None:
    """out = s₀·θ₀ + scale·Σ_t c_t τ_t, one tensor: `base` [*shape], `deltas` [T, *shape].

    The sum is made in the accumulation dtype, the base is added last and the result is rounded
    once to the dtype of `out`. Each operand is read once and the result written once, chunk by
    chunk: (T + 2)·numel elements moved, the floor of a merge. A zero coefficient reads nothing.
    Of factors the sum is one product (`LowRank.mixed`), added to the base as one task vector.
    """
    if isinstance(deltas, LowRank) and any(coefficients):
        wide = accumulator(out.dtype, base.dtype, deltas.dtype)
        deltas, coefficients = deltas.mixed(coefficients, wide)[None], [1.0]
    elif not isinstance(deltas, Tensor):
        deltas, coefficients = torch.empty(0, *base.shape, dtype=deltas.dtype), []
    terms = [
        (row.reshape(-1), c)  # a view where the row is contiguous, as the rows of an arena are
        for row, c in zip(deltas, coefficients, strict=True)
        if c and scale
    ]
    if not terms and base_scale == 1.0:
        out.copy_(base)
        return
    dtype = accumulator(out.dtype, base.dtype, deltas.dtype)
    target = (
        out.detach() if out.is_contiguous() else torch.empty_like(out, memory_format=CONTIGUOUS)
    )
    flat, origin = target.view(-1), base.reshape(-1)
    size = flat.numel()
    step = CHUNK if out.device.type == "cpu" else max(size, 1)
    scratch = torch.empty(min(step, size), dtype=dtype, device=out.device)
    for start in range(0, size, step):
        span = slice(start, min(start + step, size))
        total = scratch[: span.stop - start]
        add_up(total, [(row[span], c) for row, c in terms])
        chunk = origin[span].to(dtype)
        if base_scale != 1.0:
            chunk = chunk * base_scale
        torch.add(chunk, total, alpha=scale, out=flat[span])
    if not out.is_contiguous():
        out.copy_(target)


def add_up(total: Tensor, terms: Sequence[tuple[Tensor, float]]) -> None:
    """total = Σ c·row, one chunk, in the dtype of `total`; zero without terms."""
    if not terms:
        total.zero_()
        return
    (first, c), *rest = terms
    torch.mul(first.to(total.dtype), c, out=total)
    for row, c in rest:
        total.add_(row, alpha=c)
