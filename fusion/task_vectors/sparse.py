"""Sparse (pruned) task vectors: values and indices of the entries that are not zero."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.task_vectors.lazy import LazyTensors
from fusion.task_vectors.task_vectors import TaskVectors


@dataclass(frozen=True, eq=False)
class Sparse:
    """T sparse task vectors of one tensor: the non-zero entries of each."""

    shape: torch.Size
    """Shape of the dense form, [T, *shape]."""
    values: tuple[Tensor, ...]
    """For each task: its values [n_t], in the dtype of the dense form."""
    indices: tuple[Tensor, ...]
    """For each task: int32 [n_t], positions of the values in the flattened tensor."""

    @property
    def nbytes(self) -> int:
        """Bytes of values and indices."""
        return sum(part.nbytes for part in (*self.values, *self.indices))

    def dense(self) -> Tensor:
        """The dense task vectors [T, *shape], in new memory."""
        first = self.values[0]
        out = torch.zeros(self.shape, dtype=first.dtype, device=first.device)
        rows = out.view(self.shape[0], -1)
        for row, values, indices in zip(rows, self.values, self.indices, strict=True):
            row.index_add_(0, indices, values)
        return out


def largest(deltas: Tensor, quantile: float) -> Sparse:
    """Prune the task vectors [T, *shape] of one tensor: keep entries whose |τ| is above a quantile.

    The quantile is computed for each task over the n entries of the tensor, with linear
    interpolation. An entry is kept if its |τ| is strictly above the quantile q. That is the same as
    being above the (⌊q·(n − 1)⌋ + 1)-th smallest |τ|, so no sorting is needed. q = 0.9 keeps a
    tenth, q = 1 keeps nothing, and q = 0 drops only the smallest entry.

    Raises:
        InputError: a tensor with 2³¹ or more entries, since indices are int32.

    Source: Shen et al. 2024, arXiv:2410.21804 (E-WEMoE); the quantile is FusionBench's.

    >>> found = largest(torch.tensor([[3.0, -4.0, 1.0, 0.5]]), 0.5)
    >>> found.dense().tolist()
    [[3.0, -4.0, 0.0, 0.0]]
    """
    count = math.prod(deltas.shape[1:])
    if count > torch.iinfo(torch.int32).max:
        raise InputError(f"sparse task vectors: {count} entries a tensor; fewer than 2³¹ needed")
    rank = math.floor(quantile * (count - 1) + 1e-9) + 1
    values, indices = [], []
    for row in deltas.reshape(len(deltas), -1):
        size = row.abs()
        kept = (size > size.kthvalue(rank).values).nonzero()[:, 0] if count else size.nonzero()[:0]
        values.append(row[kept])
        indices.append(kept.to(torch.int32))
    return Sparse(deltas.shape, tuple(values), tuple(indices))


def pruned(vectors: TaskVectors, names: Iterable[str], quantile: float) -> TaskVectors:
    """Task vectors in which some tensors are pruned by `largest` and stored sparse.

    The result has these tensors only. A tensor is made dense each time it is read, so one tensor's
    dense task vectors are in memory at a time.

    Args:
        vectors: base and task vectors.
        names: the tensors to prune.
        quantile: of |τ|, in [0, 1]; entries above it are kept.
    """
    kept = {name: largest(vectors.deltas[name], quantile) for name in names}

    def outline(name: str) -> Tensor:
        like = kept[name]
        return torch.empty(like.shape, dtype=like.values[0].dtype, device="meta")

    deltas = LazyTensors(kept, lambda name: kept[name].dense(), outline)
    return replace(vectors, deltas=deltas)
