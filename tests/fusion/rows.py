"""Task vectors of one tensor from rows of numbers."""

import torch

from fusion.task_vectors.task_vectors import TaskVectors


def vectors_of(
    *rows: list[float], dtype: torch.dtype = torch.float32, base: float = 0.0
) -> TaskVectors:
    """Task vectors `t0`, `t1`, … of one tensor `w`: a row each, over a base of equal entries."""
    deltas = torch.tensor(rows, dtype=dtype)
    names = tuple(f"t{index}" for index in range(len(rows)))
    return TaskVectors(names, {"w": torch.full(deltas.shape[1:], base, dtype=dtype)}, {"w": deltas})
