"""OptMerge (WUDI v2): WUDI on task matrices that are freed of noise by low-rank approximations."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.methods.spectral.svd import leading, merge_matrices, wide_copy
from fusion.task_vectors.task_vectors import TaskVectors


def optmerge(
    vectors: TaskVectors,
    *,
    experts: Literal["full", "lora"] = "full",
    steps: Annotated[int, Interval(ge=0)] = 300,
    learning_rate: Annotated[float | None, Interval(ge=0)] = None,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """OptMerge: minimise Σ_t ‖(M − τ̂_t)·V_t·S_t‖² / ‖τ_t‖² over M; θ = θ₀ + λ·M.

    This is done for each matrix [m, n]. U_t·S_t·V_tᵀ are the leading floor(r/T) singular triplets
    of τ_t, r = min(m, n), which stand for the inputs of task t's layer. τ̂_t is the task matrix
    without noise. All other tensors are averaged. With `wudi`, V_t·S_t is the whole τ_tᵀ, and τ̂_t
    is τ_t.

    Args:
        vectors: base and task vectors.
        experts: how they were fine-tuned. `full` (default): τ̂_t is the mean τ̄ and the leading
            floor(r/T) triplets of τ_t − τ̄; M starts at Σ_t τ_t and takes Adam steps (β 0.9 and
            0.999, ε 1e-8). `lora`: τ̂_t is U_t·S_t·V_tᵀ; M starts at τ̄ and takes steps of gradient
            descent with momentum 0.9.
        steps: of the optimiser. Default 300: the released code's.
        learning_rate: of the optimiser. Default 1e-5 for `full`, 1e-4 for `lora`: the released
            code's.
        scale: λ, for M and for the averages. Default 1: the released code's.

    The gradient is 2(M·A − B) with A = Σ_t V_t·S_t²·V_tᵀ/‖τ_t‖² [n, n] and B = Σ_t τ̂_t·V_t·S_t²·
    V_tᵀ/‖τ_t‖² [m, n], which are computed once; this is checked against autograd. Zero task vectors
    have no term. If r < T there are no triplets, and M stays where it starts. Memory beside base,
    task vectors and result: a few matrices in float64.

    Source: Wei et al. 2025, arXiv:2505.19892; the two cases are those of the released code, for
    fully fine-tuned and for LoRA experts.

    >>> found = {"a": {"w": torch.tensor([[1.0, 0.0], [0.0, 0.0]])},
    ...          "b": {"w": torch.tensor([[0.0, 0.0], [0.0, 2.0]])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2, 2)}, found)
    >>> optmerge(v, steps=0)["w"].tolist(), optmerge(v, experts="lora", steps=0)["w"].tolist()
    ([[1.0, 0.0], [0.0, 2.0]], [[0.5, 0.0], [0.0, 1.0]])
    """
    rate = learning_rate
    if rate is None:
        rate = 1e-5 if experts == "full" else 1e-4

    def merged(deltas: Tensor) -> Tensor:
        start = deltas.sum(0) if experts == "full" else deltas.mean(0)
        seen, aim = normal_equations(deltas, centered=experts == "full")
        return stepped(start, seen, aim, experts, steps, rate)

    return merge_matrices(vectors, merged, scale=scale)


def normal_equations(deltas: Tensor, *, centered: bool) -> tuple[Tensor, Tensor]:
    """(A [n, n], B [m, n]) of task matrices [T, m, n], in their dtype; see `optmerge`."""
    known, share = deltas.dtype, min(deltas.shape[1:]) // len(deltas)
    columns = deltas.shape[2]
    seen = torch.zeros(columns, columns, dtype=torch.float64, device=deltas.device)
    aim = torch.zeros(deltas.shape[1:], dtype=torch.float64, device=deltas.device)
    mean = wide_copy(deltas[0])
    for delta in deltas[1:]:
        mean += wide_copy(delta)
    mean /= len(deltas)
    for delta in deltas if share else deltas[:0]:
        task = wide_copy(delta)
        size = float(torch.linalg.vector_norm(task))
        if not size:
            continue
        found = leading(task, share, known)
        inputs = found.right * (found.values / size)
        own = inputs @ inputs.T
        if centered:
            noise = float(10 * torch.finfo(known).eps) * size
            found = leading(task - mean, share, known, least=noise)
        clean = found.left * found.values @ found.right.T
        seen += own
        aim += (mean + clean if centered else clean) @ own
    return seen.to(known), aim.to(known)


def stepped(
    start: Tensor,
    seen: Tensor,
    aim: Tensor,
    experts: Literal["full", "lora"],
    steps: int,
    learning_rate: float,
) -> Tensor:
    """M [m, n] after `steps` steps of the optimiser from `start`, with the gradient 2(M·A − B)."""
    merged = start.detach().clone(memory_format=torch.contiguous_format)
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam([merged], lr=learning_rate, fused=True)
        if experts == "full"
        else torch.optim.SGD([merged], lr=learning_rate, momentum=0.9, fused=True)
    )
    for _ in range(steps):
        merged.grad = torch.mm(merged, seen).sub_(aim).mul_(2)
        optimizer.step()
    return merged.detach()
