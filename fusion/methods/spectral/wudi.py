"""WUDI: minimise the interference of the merged matrix with each task's matrix."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.methods.spectral.svd import merge_matrices
from fusion.task_vectors.task_vectors import TaskVectors


def wudi(
    vectors: TaskVectors,
    *,
    steps: Annotated[int, Interval(ge=0)] = 400,
    learning_rate: Annotated[float, Interval(ge=0)] = 1e-5,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """WUDI: minimise the interference Σ_t ‖(M − τ_t)·τ_tᵀ‖² / ‖τ_t‖² over M; θ = θ₀ + λ·M.

    This is done for each matrix. The rows of τ_t approximate the inputs of task t's layer. M starts
    at Σ_t τ_t and takes `steps` Adam steps (β 0.9 and 0.999, ε 1e-8) with the exact gradient 2(M·A
    − B), where A = Σ_t τ_tᵀτ_t/‖τ_t‖² [n, n] and B = Σ_t τ_t·τ_tᵀτ_t/‖τ_t‖² [m, n] are computed
    once. So a step is one product [m, n]·[n, n], whatever the number of tasks. All other tensors
    are averaged.

    Args:
        vectors: base and task vectors.
        steps: Adam steps. Default 400, FusionBench's; 0 gives the sum.
        learning_rate: Adam's. Default 1e-5, FusionBench's.
        scale: λ, for M and for the averages. Default 1: the method has no such factor.

    Computed in the dtype of the task vectors (float32). Memory beside base, task vectors and
    result: 5 matrices [m, n], 2 [n, n], one task's matrix.

    Source: Cheng et al. 2025, arXiv:2503.08099; the closed form of the gradient is ours, checked
    against autograd. Deviation: zero task vectors have no term (FusionBench divides by zero).

    >>> experts = {"a": {"w": torch.tensor([[1.0, 0.0]])}, "b": {"w": torch.tensor([[0.0, 2.0]])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(1, 2)}, experts)
    >>> wudi(v)["w"].tolist()  # orthogonal tasks: the sum is the minimum
    [[1.0, 2.0]]
    """

    def merged(deltas: Tensor) -> Tensor:
        return descended(deltas, steps, learning_rate)

    return merge_matrices(vectors, merged, scale=scale)


def normal_equations(deltas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Στ [m, n], A [n, n], B [m, n]) of task matrices [T, m, n]; the gradient is 2(M·A − B).

    Each has its own memory, because the bits of products may depend on the alignment of operands.
    """
    start = torch.zeros_like(deltas[0], memory_format=torch.contiguous_format)
    seen = start.new_zeros(start.shape[1], start.shape[1])
    aim = torch.zeros_like(start)
    task, unit, own = torch.empty_like(start), torch.empty_like(start), torch.empty_like(seen)
    for delta in deltas:
        task.copy_(delta)
        start += task
        size = float(torch.linalg.vector_norm(task, dtype=torch.float64))
        if size:
            torch.div(task, size, out=unit)  # first: squares of small entries vanish in float32
            torch.mm(unit.T, unit, out=own)
            seen += own
            aim.add_(torch.mm(task, own, out=unit))
    return start, seen, aim


def descended(deltas: Tensor, steps: int, learning_rate: float) -> Tensor:
    """M [m, n] after `steps` Adam steps from Στ."""
    merged, seen, aim = normal_equations(deltas)
    adam = torch.optim.Adam([merged], lr=learning_rate, fused=True)
    merged.grad = torch.empty_like(merged)
    for _ in range(steps):
        # The product by itself, then minus B: at the minimum of a single task the two cancel to
        # the bit, and Adam, which would blow up what rounding leaves, stays there.
        torch.mm(merged, seen, out=merged.grad)
        merged.grad.sub_(aim).mul_(2)
        adam.step()
    return merged.detach()
