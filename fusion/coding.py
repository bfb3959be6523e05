"""Codings: coefficients of the task vectors, and the one kernel that mixes with them.

Axes: B samples (1: one static model), T tasks, G groups of tensors that share a coefficient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.state import TaskVectors, accumulator

Coding: TypeAlias = Tensor
"""[B, T, G]: B = 1 one static model, G = 1 task-wise, G = number of tensors layer-wise."""

CHUNK = 1 << 18
"""Elements mixed at a time on a CPU: 1 MiB of float32, so that the running sum stays in cache."""


def one_hot(tasks: Sequence[str], task: str) -> Coding:
    """The coding that IS expert `task`: [1, T, 1].

    >>> one_hot(("a", "b"), "b").flatten().tolist()
    [0.0, 1.0]
    """
    coding = torch.zeros(1, len(tasks), 1)
    coding[0, tasks.index(task), 0] = 1.0
    return coding


def mix(vectors: TaskVectors, coding: Coding) -> dict[str, Tensor]:
    """θ_k = θ₀,k + Σ_t c_{t,g(k)} τ_{t,k} for a static coding [1, T, G].

    G = 1 is one coefficient a task; G = the number of floating-point tensors is one a task and
    tensor, in the order of `vectors.deltas`.

    Raises:
        InputError: a coding of another shape.
    """
    sizes = (1, len(vectors.deltas))
    if coding.ndim != 3 or coding.shape[:2] != (1, len(vectors.tasks)):
        raise InputError(f"coding: shape {list(coding.shape)}; [1, {len(vectors.tasks)}, G] needed")
    if coding.shape[2] not in sizes:
        raise InputError(f"coding: {coding.shape[2]} groups; 1 or {sizes[1]} (tensors) allowed")
    columns = coding[0].T.tolist()  # [G][T], as Python floats: exact, and no host sync in the loop
    column = {
        name: columns[index if len(columns) > 1 else 0] for index, name in enumerate(vectors.deltas)
    }

    def fill(name: str, out: Tensor) -> None:
        mix_tensor(out, vectors.base[name], vectors.deltas[name], column[name])

    return vectors.build(fill)


def mix_tensor(
    out: Tensor,
    base: Tensor,
    deltas: Tensor,
    coefficients: Sequence[float],
    *,
    scale: float = 1.0,
    base_scale: float = 1.0,
) -> None:
    """out = s₀·θ₀ + scale·Σ_t c_t τ_t, one tensor: `base` [*shape], `deltas` [T, *shape].

    The sum is made in the accumulation dtype, the base is added last and the result is rounded
    once to the dtype of `out`. Each operand is read once and the result written once, chunk by
    chunk: (T + 2)·numel elements moved, the floor of a merge. A zero coefficient reads nothing.
    """
    dtype = accumulator(out.dtype, base.dtype, deltas.dtype)
    terms = [
        (row, c) for row, c in zip(deltas.flatten(1), coefficients, strict=True) if c and scale
    ]
    # `out` is written through a flat view; the resident model's parameters are contiguous.
    target, origin = out.view(-1), base.reshape(-1)
    size = target.numel()
    step = CHUNK if out.device.type == "cpu" else max(size, 1)
    total = torch.empty(min(step, size), dtype=dtype, device=out.device)
    for start in range(0, size, step):
        stop = min(start + step, size)
        add_chunk(target[start:stop], origin[start:stop], total[: stop - start],
                  [(row[start:stop], c) for row, c in terms], scale, base_scale)


def add_chunk(
    out: Tensor,
    base: Tensor,
    total: Tensor,
    terms: Sequence[tuple[Tensor, float]],
    scale: float,
    base_scale: float,
) -> None:
    """One chunk of `mix_tensor`; `total` is scratch in the accumulation dtype."""
    if base_scale != 1.0:
        base = base.to(total.dtype) * base_scale
    if not terms:
        out.copy_(base)
        return
    (first, c), *rest = terms
    torch.mul(first, c, out=total)
    for row, c in rest:
        total.add_(row, alpha=c)
    if out.dtype == base.dtype == total.dtype:
        torch.add(base, total, alpha=scale, out=out)
    else:
        out.copy_(base.to(total.dtype).add_(total, alpha=scale))
