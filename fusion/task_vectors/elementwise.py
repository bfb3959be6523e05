"""Elementwise merge rules over all task vectors, computed in chunks that fit the cache."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fusion.task_vectors.task_vectors import TaskVectors, accumulator
from fusion.task_vectors.threads import SERIAL, in_threads, portions

Combine = Callable[[Tensor], Tensor]
"""(τ [T, n]) -> merged task vector [n]; what it is given is scratch, free to be overwritten."""

CONTIGUOUS = torch.contiguous_format


def combined(vectors: TaskVectors, combine: Combine, *, scale: float = 1.0) -> dict[str, Tensor]:
    """θ_j = θ₀,j + scale·combine(τ_1j … τ_Tj), of every tensor: one rule for all entries."""

    def fill(name: str, out: Tensor) -> None:
        combine_tensor(out, vectors.base[name], vectors.deltas[name], combine, scale=scale)

    return vectors.build(fill)


def combine_tensor(
    out: Tensor, base: Tensor, deltas: Tensor, combine: Combine, *, scale: float = 1.0
) -> None:
    """One tensor: `base` [*shape], `deltas` [T, *shape]; the base is added last, rounded once."""
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
    """Σ over chunks of `measure(τ [T, n])` [*k], in float64.

    Chunks are the same wherever the tensor is, and their sums are added up exactly rounded: the
    bits depend neither on threads nor on how a model is cut.
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
    """Elements at a time: few on a CPU; on a GPU, whole tensors in large kernels."""
    return SERIAL if flat.device.type == "cpu" else max(1, len(flat))


def spans(portion: slice, flat: Tensor) -> list[slice]:
    """A portion cut into chunks."""
    size = step(flat)
    return [
        slice(start, min(start + size, portion.stop))
        for start in range(portion.start, portion.stop, size)
    ]


def chunk(rows: Tensor, span: slice, dtype: torch.dtype) -> Tensor:
    """A copy of [T, n] entries, in the dtype of sums."""
    return rows[:, span].to(dtype, copy=True)
