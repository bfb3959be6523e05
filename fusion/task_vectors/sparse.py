"""Sparse task vectors: values and indices of the entries that were kept."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.task_vectors.lazy import Computed
from fusion.task_vectors.task_vectors import TaskVectors


@dataclass(frozen=True, eq=False)
class Sparse:
    """T task vectors of one tensor: of each its entries that are not zero."""

    shape: torch.Size
    """[T, *shape], of the dense ones."""
    values: tuple[Tensor, ...]
    """Of each task: [n_t]."""
    places: tuple[Tensor, ...]
    """Of each task: int32 [n_t], among the elements of the flat tensor."""

    @property
    def nbytes(self) -> int:
        """Memory of values and places."""
        return sum(part.nbytes for part in (*self.values, *self.places))

    def dense(self) -> Tensor:
        """[T, *shape], made anew."""
        first = self.values[0]
        out = torch.zeros(self.shape, dtype=first.dtype, device=first.device)
        rows = out.view(self.shape[0], -1)
        for row, values, places in zip(rows, self.values, self.places, strict=True):
            row.index_add_(0, places, values)
        return out


def largest(deltas: Tensor, quantile: float) -> Sparse:
    """Of each task's [*shape] the entries whose |τ| is strictly above the quantile of its |τ|.

    With n entries and q the quantile, linearly interpolated: what is above it is what is above the
    (⌊q·(n − 1)⌋ + 1)-th smallest, for either the quantile is that entry, or it lies between that
    one and the next. So q = 0.9 keeps a tenth, q = 1 nothing, and q = 0 all but the smallest.

    Source: Shen et al. 2024, arXiv:2410.21804 (E-WEMoE); the quantile as FusionBench takes it.

    >>> found = largest(torch.tensor([[3.0, -4.0, 1.0, 0.5]]), 0.5)
    >>> found.dense().tolist()
    [[3.0, -4.0, 0.0, 0.0]]
    """
    count = math.prod(deltas.shape[1:])
    if count > torch.iinfo(torch.int32).max:
        raise InputError(f"sparse task vectors: {count} entries a tensor; fewer than 2³¹ needed")
    rank = math.floor(quantile * (count - 1) + 1e-9) + 1
    values, places = [], []
    for row in deltas.reshape(len(deltas), -1):
        size = row.abs()
        kept = (size > size.kthvalue(rank).values).nonzero()[:, 0] if count else size.nonzero()[:0]
        values.append(row[kept])
        places.append(kept.to(torch.int32))
    return Sparse(deltas.shape, tuple(values), tuple(places))


def pruned(vectors: TaskVectors, names: Iterable[str], quantile: float) -> TaskVectors:
    """The same with `largest` task vectors of some tensors, which are all that is kept.

    They are kept sparse, and a tensor's are made dense when they are read: of the model, one
    tensor's dense task vectors are in memory at a time.
    """
    kept = {name: largest(vectors.deltas[name], quantile) for name in names}

    def outline(name: str) -> Tensor:
        like = kept[name]
        return torch.empty(like.shape, dtype=like.values[0].dtype, device="meta")

    deltas = Computed(kept, lambda name: kept[name].dense(), outline)
    return replace(vectors, deltas=deltas)
