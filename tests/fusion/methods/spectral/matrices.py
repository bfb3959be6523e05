"""Task matrices of one tensor, for tests of rules that decompose them."""

from __future__ import annotations

import torch
from torch import Tensor

from fusion.task_vectors.task_vectors import TaskVectors


def vectors_of(deltas: Tensor) -> TaskVectors:
    """Task vectors [T, *shape] of one tensor `w`, over a base of zeros."""
    names = tuple(f"t{at}" for at in range(len(deltas)))
    return TaskVectors(names, {"w": torch.zeros_like(deltas[0])}, {"w": deltas})
