"""Elementwise merge rules over all task vectors, computed in chunks that fit into the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fusion.staging import sent
from fusion.task_vectors.coding import Shares, mix_tensor
from fusion.task_vectors.packed import ENTRIES
from fusion.task_vectors.task_vectors import TaskVectors, accumulator
from fusion.task_vectors.threads import SERIAL, in_threads, map_single_threaded, portions

Combine = Callable[..., Tensor]
"""(τ [T, n]) -> merged task vector [n]. τ is scratch memory and may be overwritten. Tensors that
are given beside τ follow as further arguments [n]."""

Change = Callable[[slice, slice], Tensor]
"""(tasks, entries) -> their changed values [tasks, n], in new memory and the accumulation dtype."""

Threads = Callable[[Callable[[slice], None], Sequence[slice]], object]
"""Maps a function to portions: `in_threads` or `map_single_threaded`."""

CHANGED = 1 << 17
"""Entries changed at a time on a CPU. Fewer cost more waits for Python's lock, since a change is a
dozen operations; more do not stay in a core's cache."""

CONTIGUOUS = torch.contiguous_format


def combined(
    vectors: TaskVectors, combine: Combine, *, scale: float | Callable[[str], Shares] = 1.0
) -> dict[str, Tensor]:
    """Merge every tensor by an elementwise rule: θ_j = θ₀,j + scale·combine(c_1 τ_1j … c_T τ_Tj).

    Args:
        vectors: base and task vectors.
        combine: the rule.
        scale: a number (default 1; all c_t = 1), or tensor name -> c_t and scale.
    """

    def fill(name: str, out: Tensor, base: Tensor, deltas: Tensor) -> None:
        if isinstance(scale, (int, float)):
            combine_tensor(out, base, deltas, combine, scale=scale)
        else:
            mine = scale(name)
            combine_tensor(out, base, deltas, combine, scale=mine.scale, factors=mine.coefficients)

    if isinstance(scale, (int, float)):
        return vectors.build_runs(fill)
    return vectors.build_runs(fill, lambda name: scale(name).key)


def combine_tensor(
    out: Tensor,
    base: Tensor,
    deltas: Tensor,
    combine: Combine,
    *,
    scale: float = 1.0,
    factors: Sequence[float] = (),
    beside: Sequence[Tensor] = (),
) -> None:
    """Merge one tensor by an elementwise rule; the base is added last, with one rounding.

    Args:
        out: [*shape], written to.
        base: θ₀ [*shape].
        deltas: τ [T, *shape].
        combine: the rule.
        scale: multiplies the merged task vector. Default 1.
        factors: T numbers that multiply the task vectors first. Default: none.
        beside: further arguments of the rule, flat [n]. Default: none.
    """
    rows = flat_rows(deltas)
    dtype = accumulator(out.dtype, base.dtype, deltas.dtype)

    def merged(span: slice) -> Tensor:
        tasks = multiplied(chunk(rows, span, dtype), factors)
        return combine(tasks, *(other[span] for other in beside))

    merge_spans(out, base, rows, merged, scale=scale)


def linear_of_changed(
    vectors: TaskVectors,
    shares_of: Callable[[str], Shares],
    changed: Callable[[str, Tensor], Change],
) -> dict[str, Tensor]:
    """Merge changed task vectors by weights: the bits of `linear` on `vectors.altered`.

    The changed task vectors are in memory one chunk at a time.

    Args:
        vectors: base and task vectors, before the change.
        shares_of: name of a tensor -> its weights.
        changed: (name, τ [T, *shape] in memory) -> the change of its entries.
    """

    def fill(name: str, out: Tensor) -> None:
        deltas = vectors.deltas[name]
        mix_changed(
            out, vectors.base[name], flat_rows(deltas), shares_of(name), changed(name, deltas)
        )

    return vectors.build(fill)


def mix_changed(out: Tensor, base: Tensor, rows: Tensor, mine: Shares, change: Change) -> None:
    """Merge one tensor: out = s₀·θ₀ + scale·Σ_t c_t change(τ_t), as `mix_tensor` does.

    Args:
        out: [*shape], written to.
        base: θ₀ [*shape].
        rows: τ [T, n].
        mine: weights.
        change: see `Change`.
    """
    coefficients = [c if mine.scale else 0.0 for c in mine.coefficients]
    if not any(coefficients):
        mix_tensor(out, base, rows, coefficients, base_scale=mine.base_scale)
        return

    def merged(span: slice) -> Tensor:
        total: Tensor | None = None
        for tasks in task_groups(rows, span):
            shared = coefficients[tasks]
            for row, c in zip(change(tasks, span) if any(shared) else (), shared, strict=False):
                if total is not None:
                    total.add_(row, alpha=c)
                elif c:
                    total = row.mul_(c) if c != 1 else row
        assert total is not None
        return total

    merge_spans(
        out, base, rows, merged,
        scale=mine.scale, base_scale=mine.base_scale, size=CHANGED, threads=map_single_threaded,
    )  # fmt: skip


def merge_spans(
    out: Tensor,
    base: Tensor,
    rows: Tensor,
    merged: Callable[[slice], Tensor],
    *,
    scale: float,
    base_scale: float = 1.0,
    size: int = SERIAL,
    threads: Threads = in_threads,
) -> None:
    """Merge one tensor chunk by chunk: out = base_scale·θ₀ + scale·merged(span).

    Args:
        out: [*shape], written to.
        base: θ₀ [*shape].
        rows: τ [T, n], whose size and device decide the chunks.
        merged: positions of a chunk -> merged task vector [n] there.
        scale: multiplies the merged task vector.
        base_scale: s₀. Default 1.
        size: elements of a chunk on a CPU.
        threads: maps a function to portions of the tensor.
    """
    target = (
        out.detach() if out.is_contiguous() else torch.empty_like(out, memory_format=CONTIGUOUS)
    )
    flat, origin = target.view(-1), base.reshape(-1)
    dtype = accumulator(out.dtype, base.dtype, rows.dtype)

    def work(portion: slice) -> None:
        for span in spans(portion, rows, size):
            begin = origin[span].to(dtype)
            if base_scale != 1.0:
                begin = begin * base_scale
            torch.add(begin, merged(span).to(dtype), alpha=scale, out=flat[span])

    threads(work, shares(rows))
    if not out.is_contiguous():
        out.copy_(target)


def write_changed(out: Tensor, rows: Tensor, change: Change) -> None:
    """Write the changed task vectors to `out` [T, n], chunk by chunk."""

    def work(portion: slice) -> None:
        for span in spans(portion, rows, CHANGED):
            for tasks in task_groups(rows, span):
                out[tasks, span] = change(tasks, span)

    map_single_threaded(work, shares(rows))


def task_groups(rows: Tensor, span: slice) -> list[slice]:
    """Cut the T axis of [T, n] into groups whose entries of a chunk are changed together.

    On a CPU a group has `CHANGED` entries at most: many tasks of a small tensor, one of a large
    one. On a GPU all tasks are one group.
    """
    tasks = len(rows)
    size = tasks
    if rows.device.type == "cpu":
        size = max(1, CHANGED // max(1, span.stop - span.start))
    return [slice(at, min(at + size, tasks)) for at in range(0, tasks, size)]


def multiplied(rows: Tensor, factors: Sequence[float]) -> Tensor:
    """Multiply the rows of [T, n] by T numbers, in place; nothing is done for ones or no numbers.

    >>> multiplied(torch.ones(2, 2), [1.0, 0.5]).tolist()
    [[1.0, 1.0], [0.5, 0.5]]
    """
    if all(factor == 1 for factor in factors):
        return rows
    column = torch.tensor(factors, dtype=rows.dtype)
    return rows.mul_(sent(column, rows.device)[:, None])


def totals(deltas: Tensor, measure: Combine, *, beside: Sequence[Tensor] = ()) -> Tensor:
    """Sum over chunks of `measure(τ [T, n])` [*k], in float64, on the device of the task vectors.

    `beside`: further arguments of the measure, flat [n]. Default: none.

    Chunk borders are the same wherever the tensor lies, and on a CPU the chunks' results are added
    exactly (`math.fsum`). So the bits depend neither on threads nor on how a model is split into
    shards. On a GPU they are added there, and the host does not wait.
    """
    rows, dtype = flat_rows(deltas), accumulator(deltas.dtype)

    def work(portion: slice) -> list[Tensor]:
        return [
            measure(chunk(rows, span, dtype), *(other[span] for other in beside)).double()
            for span in spans(portion, rows)
        ]

    parts = [part for some in in_threads(work, shares(rows)) for part in some]
    if not parts:
        nothing = (other[:0] for other in beside)
        return torch.zeros_like(measure(chunk(rows, slice(0, 0), dtype), *nothing).double())
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


def flat_rows(deltas: Tensor) -> Tensor:
    """Task vectors [T, *shape] as [T, n]: a view where they are contiguous."""
    return deltas.reshape(len(deltas), math.prod(deltas.shape[1:]))


def step(rows: Tensor, size: int = SERIAL) -> int:
    """Chunk size for [T, n]: `size` elements of a row on a CPU, `ENTRIES` of all on a GPU."""
    return size if rows.device.type == "cpu" else max(1, ENTRIES // max(1, len(rows)))


def shares(rows: Tensor) -> list[slice]:
    """The elements [0, n) of [T, n] in one portion a thread on a CPU, in one on a GPU."""
    size = rows.shape[1]
    if rows.device.type != "cpu":
        return [slice(0, size)] if size else []
    return portions(size, SERIAL)


def spans(portion: slice, rows: Tensor, chunk: int = SERIAL) -> list[slice]:
    """Cut a portion of [T, n] into chunks, of `chunk` elements of a row on a CPU."""
    size = step(rows, chunk)
    return [
        slice(start, min(start + size, portion.stop))
        for start in range(portion.start, portion.stop, size)
    ]


def chunk(rows: Tensor, span: slice, dtype: torch.dtype) -> Tensor:
    """A copy of the entries [T, n] of a chunk, in the accumulation dtype."""
    return rows[:, span].to(dtype, copy=True)


def rows_or_columns(matrix: Tensor, axis: int) -> list[tuple[slice, slice]]:
    """Cut a matrix into pieces of whole rows (axis 1) or whole columns (axis 0).

    They are of about `SERIAL` entries on a CPU, and of `ENTRIES` on a GPU.
    """
    entries = SERIAL if matrix.device.type == "cpu" else ENTRIES
    size = matrix.shape[1 - axis]
    width = max(1 if axis == 1 else 32, entries // matrix.shape[axis])
    parts = [slice(start, min(start + width, size)) for start in range(0, size, width)]
    whole = slice(None)
    return [(part, whole) if axis == 1 else (whole, part) for part in parts]
