"""Elementwise merge rules over all task vectors, computed in chunks that fit into the cache."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fusion.task_vectors.task_vectors import TaskVectors, accumulator
from fusion.task_vectors.threads import SERIAL, in_threads, portions

Combine = Callable[[Tensor], Tensor]
"""(τ [T, n]) -> merged task vector [n]. The argument is scratch memory and may be overwritten."""

CONTIGUOUS = torch.contiguous_format


def combined(vectors: TaskVectors, combine: Combine, *, scale: float = 1.0) -> dict[str, Tensor]:
    """Merge every tensor by an elementwise rule: θ_j = θ₀,j + scale·combine(τ_1j … τ_Tj)."""

    def fill(name: str, out: Tensor) -> None:
        combine_tensor(out, vectors.base[name], vectors.deltas[name], combine, scale=scale)

    return vectors.build(fill)


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
        for span in spans(portion, flat):
            merged = combine(chunk(rows, span, dtype))
            torch.add(origin[span].to(dtype), merged, alpha=scale, out=flat[span])

    in_threads(work, portions(len(flat), step(flat)))
    if not out.is_contiguous():
        out.copy_(target)


def totals(deltas: Tensor, measure: Combine) -> Tensor:
    """Sum over chunks of `measure(τ [T, n])` [*k], in float64 on the CPU.

    Chunk borders are the same wherever the tensor lies, and the chunks' results are added exactly
    (`math.fsum`). So the bits depend neither on threads nor on how a model is split into shards.
    """
    rows = deltas.reshape(len(deltas), -1)
    dtype = accumulator(deltas.dtype)

    def work(portion: slice) -> list[Tensor]:
        return [
            measure(chunk(rows, span, dtype)).double().cpu() for span in spans(portion, rows[0])
        ]

    parts = [part for some in in_threads(work, portions(rows.shape[1], SERIAL)) for part in some]
    if not parts:
        return torch.zeros_like(measure(chunk(rows, slice(0, 0), dtype)).double()).cpu()
    stacked = torch.stack(parts)
    sums = [math.fsum(column) for column in stacked.flatten(1).T.tolist()]
    return torch.tensor(sums, dtype=torch.float64).view(stacked.shape[1:])


def step(flat: Tensor) -> int:
    """Chunk size: 32,768 elements on a CPU; whole tensors on a GPU."""
    return SERIAL if flat.device.type == "cpu" else max(1, len(flat))


def spans(portion: slice, flat: Tensor) -> list[slice]:
    """Cut a portion into chunks."""
    size = step(flat)
    return [
        slice(start, min(start + size, portion.stop))
        for start in range(portion.start, portion.stop, size)
    ]


def chunk(rows: Tensor, span: slice, dtype: torch.dtype) -> Tensor:
    """A copy of the entries [T, n] of a chunk, in the accumulation dtype."""
    return rows[:, span].to(dtype, copy=True)
