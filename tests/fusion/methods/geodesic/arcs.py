"""Models of a few tensors for methods along arcs, in float64 and rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from fusion.task_vectors.task_vectors import TaskVectors
from fusion.testing import drawn


def models(count: int, *shape: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """θ₀ [*shape] and τ [count, *shape], float64."""
    base = drawn(*shape, seed=1, dtype=torch.float64)
    return base, spread * drawn(count, *shape, seed=2, dtype=torch.float64)


def vectors_of_models(base: Tensor, deltas: Tensor, dtype: torch.dtype) -> TaskVectors:
    """Task vectors of one tensor `w` of the experts `m0`, `m1`, …"""
    tasks = tuple(f"m{at}" for at in range(len(deltas)))
    return TaskVectors(tasks, {"w": base.to(dtype)}, {"w": deltas.to(dtype)})
