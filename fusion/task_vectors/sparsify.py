"""Trimming of task vectors to their largest entries: thresholds, sign election, rounding.

TIES, DARE, AdaMerging++ and DAWE use these functions. T is the number of task vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fusion.staging import sent
from fusion.task_vectors.elementwise import gathered, multiplied, shares
from fusion.task_vectors.equal_values import elected_sign
from fusion.task_vectors.lazy import (
    LazyTensors,
    NarrowTensors,
    TensorStream,
    as_stored,
)
from fusion.task_vectors.packed import ENTRIES, Packed, joined, on_gpu, packed, spanned
from fusion.task_vectors.sharded_reduce import Survey
from fusion.task_vectors.streaming_topk import kth_largest, row_magnitudes
from fusion.task_vectors.task_vectors import TaskVectors, accumulator
from fusion.task_vectors.threads import SERIAL, in_threads

Precision: TypeAlias = Literal["float32", "float16", "bfloat16"]
Compat: TypeAlias = Literal["paper", "fusionbench"]

CHUNK = SERIAL
"""Elements trimmed at a time on a CPU, so that T trimmed rows and the running sums stay in
cache."""


@dataclass(frozen=True)
class TrimThresholds:
    """Thresholds of a trim, and the sign that is elected where a sum is exactly zero."""

    smallest: tuple[float, ...]
    """For each task, the smallest magnitude that is kept; infinity: nothing is kept."""
    tiebreak: float = 0.0
    """Sign elected where the sum of the trimmed task vectors is exactly zero: −1, 0 or 1."""


@dataclass(frozen=True)
class Trim:
    """Trimming and rounding of task vectors before coefficients are learned on them.

    The default changes nothing.
    """

    density: float = 1.0
    """Fraction of entries that are kept, those of largest magnitude."""
    elect: bool = False
    """True: trim each task vector as a whole and keep only entries that agree with the elected
    sign, as TIES does (AdaMerging++). False: trim each row of each weight matrix by itself
    (DAWE)."""
    dtype: Precision = "float32"
    """Dtype that task vectors are rounded to; sums stay in float32."""

    @property
    def nothing(self) -> bool:
        """Whether task vectors stay as they are."""
        return self.density == 1.0 and not self.elect and self.dtype == "float32"


def trim_survey(vectors: TaskVectors, trim: Trim) -> Survey[TrimThresholds | None]:
    """Survey for the thresholds of a whole model; None if each row has its own threshold."""
    if not trim.elect:
        return None
    return (yield from threshold_survey(vectors.deltas, len(vectors.tasks), trim.density, "paper"))


def trimmed(vectors: TaskVectors, trim: Trim, cut: TrimThresholds | None) -> TaskVectors:
    """Trimmed and rounded task vectors. Base and buffers are shared, task vectors are copies.

    Lazy task vectors (`LazyTensors`) are not copied; they are trimmed at each read. Those stored in
    bfloat16 (`NarrowTensors`) are copied, and the copy is in bfloat16 too: trimming keeps values.

    Args:
        vectors: a model or a shard.
        trim: density, sign election and dtype. float64 task vectors are not rounded.
        cut: thresholds of the whole model, the result of `trim_survey`.

    Sources: Yang et al. 2024, arXiv:2310.02575, §3.3 (AdaMerging++: TIES' trim and sign election,
    per-task survivors); FusionBench's DAWE (rows of linear task vectors).
    """
    if trim.nothing:
        return vectors

    def rounded(dtype: torch.dtype) -> torch.dtype:
        # Doubles stay doubles: a float64 run is an oracle, and rounding it would blind it.
        return dtype if trim.dtype == "float32" or dtype == torch.float64 else asked

    asked = getattr(torch, trim.dtype)

    def change(name: str, delta: Tensor) -> Tensor:
        if trim.elect:
            assert cut is not None
            kept = elected(delta, cut)
        elif trim.density < 1.0 and delta.ndim == 3:
            kept = largest_of_rows(delta, trim.density)
        else:
            kept = delta
        return kept.to(rounded(delta.dtype))

    stored = as_stored(vectors.deltas)
    if isinstance(stored, LazyTensors):
        return vectors.altered(change)
    deltas: Mapping[str, Tensor]
    if trim.elect and isinstance(stored, Packed) and on_gpu(stored):
        assert cut is not None
        deltas = packed_elected(stored, cut, rounded)
    else:
        deltas = {name: change(name, delta) for name, delta in stored.items()}
    narrow = isinstance(vectors.deltas, NarrowTensors)
    return replace(vectors, deltas=NarrowTensors(deltas) if narrow else deltas)


def packed_elected(
    deltas: Packed, cut: TrimThresholds, rounded: Callable[[torch.dtype], torch.dtype]
) -> Packed:
    """`elected` of packed task vectors on a GPU, packed again; `rounded`: dtype -> that of the
    copy."""
    shapes = {name: (place.shape, rounded(place.dtype)) for name, place in deltas.places.items()}
    first = next(iter(deltas.flat.values()))
    made = packed(shapes, first.device, lead=tuple(first.shape[:-1]))
    for run in joined(list(deltas), [deltas, made], dict.fromkeys(deltas)):
        elect_into(spanned(made, run), spanned(deltas, run), cut)
    return made


def elected(delta: Tensor, cut: TrimThresholds) -> Tensor:
    """TIES' trim and sign election of the task vectors [T, *shape] of one tensor.

    Kept are entries of at least the threshold that agree with the sign of the trimmed sum over
    tasks; all others are 0.
    """
    out = torch.empty_like(delta, memory_format=torch.contiguous_format)
    flat = out.view(len(delta), -1)
    elect_into(flat, delta.reshape(len(delta), -1), cut)
    return out


def elect_into(out: Tensor, rows: Tensor, cut: TrimThresholds) -> None:
    """`elected` of flat task vectors [T, n], written to `out` [T, n]."""
    for span, sign, kept in trimmed_chunks(rows, cut.smallest, slice(0, out.shape[1])):
        agrees = kept * sign > 0
        out[:, span] = torch.where(agrees, kept, 0.0)


def largest_of_rows(delta: Tensor, density: float) -> Tensor:
    """Keep the floor(density·in) largest entries, at least one, of each row of [T, out, in].

    >>> largest_of_rows(torch.tensor([[[3.0, -4.0, 1.0]]]), 0.67).tolist()
    [[[3.0, -4.0, 0.0]]]
    """
    keep = max(1, math.floor(delta.shape[-1] * density + 1e-6))
    smallest = delta.abs().topk(keep, dim=-1, sorted=True).values[..., -1:]
    return torch.where(delta.abs() >= smallest, delta, torch.zeros_like(delta))


def threshold_survey(
    deltas: Mapping[str, Tensor], tasks: int, density: float, compat: Compat
) -> Survey[TrimThresholds]:
    """Survey that finds the thresholds of [T, *shape] task vectors over all shards.

    It sums sizes, then digit histograms, then signs if `compat` needs them. Lazy task vectors are
    computed once a pass, one tensor at a time: two passes for float32, four for float64, one more
    for the signs.

    Args:
        deltas: tensor name -> task vectors.
        tasks: T.
        density: fraction kept.
        compat: see `fusion.methods.sparse.ties`.
    """
    groups = TensorStream(deltas)
    size = doubles = 0
    for outline in groups.outlines():
        size += outline[0].numel()
        doubles += outline.dtype == torch.float64
    totals = yield torch.tensor([size, doubles])
    size, wide = int(totals[0]), bool(totals[1])
    kept = kept_entries(size, density, compat)
    if not kept:
        return TrimThresholds((math.inf,) * tasks)
    smallest = yield from kth_largest(groups, [kept] * tasks, wide=wide)
    if compat == "paper":
        return TrimThresholds(tuple(smallest))
    ahead = torch.zeros((), dtype=torch.int64)
    for group in groups:
        for lead in [majority(stack, smallest) for stack in group]:
            ahead = ahead.to(lead.device, non_blocking=True) + lead
        del group  # before the next is made
    votes = yield ahead.cpu()
    return TrimThresholds(tuple(smallest), tiebreak=float(votes.sign()))


def tensor_survey(
    vectors: TaskVectors, density: float, compat: Compat
) -> Survey[dict[str, TrimThresholds]]:
    """Survey that finds the thresholds of every tensor by itself: tensor name -> thresholds.

    The arguments are those of `threshold_survey`.
    """
    tasks = len(vectors.tasks)

    def cut(name: str, deltas: Tensor) -> Tensor:
        rows = deltas.reshape(tasks, -1)
        kept = kept_entries(rows.shape[1], density, compat)
        if not kept:
            return torch.full((tasks,), math.inf, dtype=torch.float64, device=rows.device)
        return row_magnitudes(rows, [kept])[0].double()

    lines = gathered(vectors, cut, tasks)
    smallest = dict(zip(vectors.groups, lines.tolist(), strict=True))
    signs = torch.zeros(len(vectors.groups), dtype=torch.float64)
    if compat == "fusionbench":

        def sign(name: str, deltas: Tensor) -> Tensor:
            return majority(deltas, smallest[name]).sign().double()

        signs = gathered(vectors, sign)
    found = yield torch.cat([lines, signs[:, None]], dim=1)
    return {
        name: TrimThresholds(tuple(line[:-1]), line[-1])
        for name, line in zip(vectors.groups, found.tolist(), strict=True)
    }


def kept_entries(size: int, density: float, compat: Compat) -> int:
    """Number of the `size` entries that a trim keeps, without counting ties.

    >>> kept_entries(10, 0.3, "paper"), kept_entries(1000, 0.2, "fusionbench")
    (3, 201)
    """
    if compat == "fusionbench":
        return min(int(size * density) + 1, size)
    return min(math.floor(size * density + 1e-6), size)  # 10 · 0.3 is 2.999…


def trimmed_chunks(
    rows: Tensor, smallest: Sequence[float], portion: slice, factors: Sequence[float] = ()
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Trim flat task vectors chunk by chunk; yields (slice, elected sign [n], trimmed [T, n]).

    The sign is that of the sum over tasks, −1, 0 or 1. The two tensors are free to be overwritten;
    the trimmed task vectors are scratch memory, valid until the next chunk.

    Args:
        rows: T flat task vectors [T, n].
        smallest: T thresholds; entries of at least this magnitude are kept.
        portion: the part of the rows to process.
        factors: T numbers that multiply the trimmed task vectors before they are summed. Default:
            none.
    """
    dtype = accumulator(rows.dtype)
    plain = all(factor == 1 for factor in factors)
    floors = [below(value, dtype) for value in smallest]
    if rows.device.type != "cpu":
        yield from trimmed_on_gpu(rows, floors, portion, () if plain else factors)
        return
    step = max(1, min(CHUNK, portion.stop - portion.start))
    scratch = torch.empty(len(rows), step, dtype=dtype)
    for start in range(portion.start, portion.stop, step):
        span = slice(start, min(start + step, portion.stop))
        kept = scratch[:, : span.stop - start]
        for t, (row, floor, trimmed) in enumerate(zip(rows, floors, kept, strict=True)):
            torch.hardshrink(row[span].to(dtype), floor, out=trimmed)  # 0 where |τ| <= floor
            if not plain:
                trimmed.mul_(factors[t])
        yield span, elected_sign(kept), kept


def trimmed_on_gpu(
    rows: Tensor, floors: Sequence[float], portion: slice, factors: Sequence[float]
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """`trimmed_chunks` on a GPU: all tasks at once.

    `floors`: entries of a larger magnitude are kept.
    """
    dtype = accumulator(rows.dtype)
    least = sent(torch.tensor(floors, dtype=dtype), rows.device)[:, None]
    step = max(1, ENTRIES // max(1, len(rows)))
    for start in range(portion.start, portion.stop, step):
        span = slice(start, min(start + step, portion.stop))
        part = rows[:, span].to(dtype)
        kept = multiplied(torch.where(part.abs() > least, part, 0.0), factors)
        yield span, elected_sign(kept), kept


def majority(deltas: Tensor, smallest: Sequence[float]) -> Tensor:
    """Number of entries of a tensor with positive elected sign, minus those with negative sign.

    int64, on the device of the task vectors [T, *shape].
    """
    rows = deltas.reshape(len(deltas), -1)

    def count(portion: slice) -> list[Tensor]:
        chunks = trimmed_chunks(rows, smallest, portion)
        return [sign.sum(dtype=torch.float64).long() for _, sign, _ in chunks]

    found = [each for part in in_threads(count, shares(rows)) for each in part]
    if not found:
        return torch.zeros((), dtype=torch.int64, device=deltas.device)
    return torch.stack(found).sum()


def below(value: float, dtype: torch.dtype) -> float:
    """The next float of that dtype below `value`, so that a test by "greater" keeps `value` itself.

    Zero stays zero: entries that are zero never count as kept.

    >>> below(0.0, torch.float32), below(1.0, torch.float64), below(1 + 1e-12, torch.float32)
    (0.0, 0.9999999999999999, 1.0)
    """
    rounded = torch.tensor(value, dtype=dtype)
    if 0 < value <= float(rounded) < math.inf:
        rounded = rounded.nextafter(torch.zeros((), dtype=dtype))
    return float(rounded)
