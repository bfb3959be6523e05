"""Task vectors made sparser or coarser before coefficients are learned on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fusion.methods.static.ties import Cut, chunk_size, cut_survey, trimmed_chunks
from fusion.task_vectors.lazy import Computed
from fusion.task_vectors.sharded_reduce import Survey
from fusion.task_vectors.task_vectors import TaskVectors

Precision: TypeAlias = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Trim:
    """What is done to task vectors; the default leaves them as they are."""

    density: float = 1.0
    """Fraction of entries kept, those of largest magnitude."""
    elect: bool = False
    """True: cut each task vector as a whole, and keep only what agrees with the elected sign, as
    TIES does (AdaMerging++). False: cut each row of each weight matrix by itself (DAWE)."""
    dtype: Precision = "float32"
    """What task vectors are rounded to; sums stay in float32."""

    @property
    def nothing(self) -> bool:
        """Whether task vectors stay as they are."""
        return self.density == 1.0 and not self.elect and self.dtype == "float32"


def trim_survey(vectors: TaskVectors, trim: Trim) -> Survey[Cut | None]:
    """The cut of a whole model from its shards; None where rows are cut by themselves."""
    if not trim.elect:
        return None
    return (yield from cut_survey(vectors.deltas, len(vectors.tasks), trim.density, "paper"))


def trimmed(vectors: TaskVectors, trim: Trim, cut: Cut | None) -> TaskVectors:
    """The task vectors after `trim`; a copy of them (base and buffers are shared).

    Of task vectors that are made when they are read there is no copy: they are trimmed each time.

    Args:
        vectors: a model or a shard.
        trim: what to do.
        cut: the result of `trim_survey` over the whole model.

    Sources: Yang et al. 2024, arXiv:2310.02575, §3.3 (AdaMerging++: TIES' trim and sign election,
    per-task survivors); FusionBench's DAWE (rows of linear task vectors).
    """
    if trim.nothing:
        return vectors
    dtype = getattr(torch, trim.dtype)

    def change(name: str, delta: Tensor) -> Tensor:
        if trim.elect:
            assert cut is not None
            kept = elected(delta, cut)
        elif trim.density < 1.0 and delta.ndim == 3:
            kept = largest_of_rows(delta, trim.density)
        else:
            kept = delta
        # Doubles stay doubles: a float64 run is an oracle, and rounding it would blind it.
        return kept if delta.dtype == torch.float64 else kept.to(dtype)

    if isinstance(vectors.deltas, Computed):
        return vectors.altered(change)
    deltas = {name: change(name, delta) for name, delta in vectors.deltas.items()}
    return replace(vectors, deltas=deltas)


def elected(delta: Tensor, cut: Cut) -> Tensor:
    """Entries of [T, *shape] that survive the cut and agree with the sign of the sum of them."""
    out = torch.empty_like(delta, memory_format=torch.contiguous_format)
    flat = out.view(len(delta), -1)
    rows = [row.reshape(-1) for row in delta]
    whole = slice(0, flat.shape[1])
    step = chunk_size(rows[0])
    for start in range(whole.start, whole.stop, step):
        portion = slice(start, min(start + step, whole.stop))
        for span, mass, kept in trimmed_chunks(rows, cut.smallest, portion):
            agrees = kept * mass.sign() > 0
            flat[:, span] = torch.where(agrees, kept, torch.zeros_like(kept))
    return out


def largest_of_rows(delta: Tensor, density: float) -> Tensor:
    """The floor(density·in) largest entries, at least one, of each row of [T, out, in].

    >>> largest_of_rows(torch.tensor([[[3.0, -4.0, 1.0]]]), 0.67).tolist()
    [[[3.0, -4.0, 0.0]]]
    """
    keep = max(1, math.floor(delta.shape[-1] * density + 1e-6))
    smallest = delta.abs().topk(keep, dim=-1, sorted=True).values[..., -1:]
    return torch.where(delta.abs() >= smallest, delta, torch.zeros_like(delta))
