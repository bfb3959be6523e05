"""Tensors for tests: normal numbers by seed, and task vectors of one tensor from rows."""

from __future__ import annotations

import torch
from torch import Tensor

from fusion.task_vectors.task_vectors import TaskVectors
from fusion.testing import drawn as drawn

MASK = 2**64 - 1


def published(seed: int, count: int) -> list[int]:
    """Vigna's `splitmix64.c`, in Python's whole numbers."""
    found = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        found.append(z ^ (z >> 31))
    return found


def drawn_as_double(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, drawn in float64 whatever the dtype."""
    return drawn(*shape, seed=seed, dtype=torch.float64).to(dtype)


def vectors_of(
    *rows: list[float], dtype: torch.dtype = torch.float32, base: float = 0.0
) -> TaskVectors:
    """Task vectors `t0`, `t1`, … of one tensor `w`: a row each, over a base of equal entries."""
    deltas = torch.tensor(rows, dtype=dtype)
    names = tuple(f"t{index}" for index in range(len(rows)))
    return TaskVectors(names, {"w": torch.full(deltas.shape[1:], base, dtype=dtype)}, {"w": deltas})
