"""Elementwise merge rules over all task vectors, computed in chunks that fit into the cache."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fusion.task_vectors.packed import ENTRIES
from fusion.task_vectors.task_vectors import TaskVectors, accumulator
from fusion.task_vectors.threads import SERIAL, in_threads, portions

Combine = Callable[[Tensor], Tensor]
"""(τ [T, n]) -> merged task vector [n]. The argument is scratch memory and may be overwritten."""

CONTIGUOUS = torch.contiguous_format


def combined(vectors: TaskVectors, combine: Combine, *, scale: float = 1.0) -> dict[str, Tensor]:
    """Merge every tensor by an elementwise rule: θ_j = θ₀,j + scale·combine(τ_1j … τ_Tj)."""

    def fill(name: str, out: Tensor, base: Tensor, deltas: Tensor) -> None:
        combine_tensor(out, base, deltas, combine, scale=scale)

    return vectors.build_runs(fill)


def combine_tensor(
    out: Tensor, base: Tensor, deltas: Tensor, combine: Combine, *, scale: float = 1.0
) -> None:
    """Merge one tensor by an elementwise rule; the base is added last, with one rounding.

    Args:
        out: [*shape], written to.
        base: θ₀ [*shape].
        deltas: τ [T, *shape].
        combine: the rule.
        scale: multiplies the merged task vector. Default 1.
    """
    target = (
        out.detach() if out.is_contiguous() else torch.empty_like(out, memory_format=CONTIGUOUS)
    )
    flat, origin = target.view(-1), base.reshape(-1)
    rows = deltas.reshape(len(deltas), origin.numel())
    dtype = accumulator(out.dtype, base.dtype, deltas.dtype)

    def work(portion: slice) -> None:
        for span in spans(portion, rows):
            merged = combine(chunk(rows, span, dtype))
            torch.add(origin[span].to(dtype), merged, alpha=scale, out=flat[span])

    in_threads(work, shares(rows))
    if not out.is_contiguous():
        out.copy_(target)


def totals(deltas: Tensor, measure: Combine) -> Tensor:
    """Sum over chunks of `measure(τ [T, n])` [*k], in float64, on the device of the task vectors.

    Chunk borders are the same wherever the tensor lies, and on a CPU the chunks' results are added
    exactly (`math.fsum`). So the bits depend neither on threads nor on how a model is split into
    shards. On a GPU they are added there, and the host does not wait.
    """
    rows = deltas.reshape(len(deltas), -1)
    dtype = accumulator(deltas.dtype)

    def work(portion: slice) -> list[Tensor]:
        return [measure(chunk(rows, span, dtype)).double() for span in spans(portion, rows)]

    parts = [part for some in in_threads(work, shares(rows)) for part in some]
    if not parts:
        return torch.zeros_like(measure(chunk(rows, slice(0, 0), dtype)).double())
    stacked = torch.stack(parts)
    if stacked.device.type != "cpu":
        return stacked.sum(0)
    sums = [math.fsum(column) for column in stacked.flatten(1).T.tolist()]
    return torch.tensor(sums, dtype=torch.float64).view(stacked.shape[1:])


def gathered(vectors: TaskVectors, measure: Callable[[str, Tensor], Tensor], *shape: int) -> Tensor:
    """A measurement of each tensor of the whole model: float64 [G, *shape], on the CPU.

    Lines of other shards' tensors are zero, so sums over shards are exact. On a GPU the host waits
    once.

    Args:
        vectors: a model or a shard.
        measure: (name, τ [T, *shape]) -> [*shape], float64, on the device of τ.
        shape: of a measurement.
    """
    lines = torch.zeros(len(vectors.groups), *shape, dtype=torch.float64)
    place = {name: index for index, name in enumerate(vectors.groups)}
    found = {place[name]: measure(name, deltas) for name, deltas in vectors.deltas.items()}
    if found:
        lines[[*found]] = torch.stack([*found.values()]).cpu()
    return lines


def step(rows: Tensor) -> int:
    """Chunk size for [T, n]: 32,768 elements of a row on a CPU, `ENTRIES` of all on a GPU."""
    return SERIAL if rows.device.type == "cpu" else max(1, ENTRIES // max(1, len(rows)))


def shares(rows: Tensor) -> list[slice]:
    """The elements [0, n) of [T, n] in one portion a thread on a CPU, in one on a GPU."""
    size = rows.shape[1]
    if rows.device.type != "cpu":
        return [slice(0, size)] if size else []
    return portions(size, SERIAL)


def spans(portion: slice, rows: Tensor) -> list[slice]:
    """Cut a portion of [T, n] into chunks."""
    size = step(rows)
    return [
        slice(start, min(start + size, portion.stop))
        for start in range(portion.start, portion.stop, size)
    ]


def chunk(rows: Tensor, span: slice, dtype: torch.dtype) -> Tensor:
    """A copy of the entries [T, n] of a chunk, in the accumulation dtype."""
    return rows[:, span].to(dtype, copy=True)
