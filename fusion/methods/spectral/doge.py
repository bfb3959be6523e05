"""DOGE TA: task arithmetic after a data-free projected gradient descent on the task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.methods.spectral.svd import leading, wide_copy
from fusion.task_vectors.coding import mix_tensor
from fusion.task_vectors.sharded_reduce import Survey, run_surveys
from fusion.task_vectors.sparsify import TrimThresholds, threshold_survey
from fusion.task_vectors.task_vectors import TaskVectors, block_of, chosen
from fusion.task_vectors.threads import map_single_threaded


def doge_ta(
    vectors: TaskVectors,
    *,
    scale: Annotated[float, Interval(ge=0)] = 0.07,
    density: Annotated[float, Interval(ge=0, le=1)] = 0.3,
    subspace: Annotated[int, Interval(ge=1)] = 6,
    steps: Annotated[int, Interval(ge=0)] = 400,
    learning_rate: Annotated[float, Interval(ge=0)] = 1e-4,
    compat: Literal["paper", "released"] = "paper",
    survey: TrimThresholds | None = None,
) -> dict[str, Tensor]:
    """DOGE TA: add a learned Δ to all task vectors, then sum their largest entries.

    θ = θ₀ + Σ_t λ_t·m_t ⊙ (τ_t + Δ) for each matrix [m, n] inside a numbered block, where λ_t =
    λ/‖τ_t‖ and m_t marks the `density` largest entries of the whole task vector t. Δ starts at zero
    and takes `steps` Adam steps (β 0.9 and 0.999, ε 1e-8) on Σ_t Σ_i (Σ_j τ_tij·(τ_tij − s_ij −
    Λ·Δ_ij))², with s = Σ_t λ_t·τ_t and Λ = Σ_t λ_t: each row of the merged matrix shall act on the
    rows of the tasks as these do. Gradients have no part in the shared subspace: g − U·Uᵀg, where U
    are the leading min(m, n)/`subspace` left singular vectors of [U_1 … U_T], and U_t the leading
    min(m, n)/T ones of τ_t. All other tensors stay the base's.

    Args:
        vectors: base and task vectors.
        scale: λ. Default 0.07: the released code's.
        density: fraction of each task vector's entries that are kept, of those in such matrices;
            entries that tie with the smallest kept one are kept too. Default 0.3: the released
            code's.
        subspace: the shared subspace has a dimension of min(m, n)/`subspace`. Default 6: the
            released code's.
        steps: Adam steps. Default 400: the released code's; 0 leaves Δ = 0.
        learning_rate: Adam's. Default 1e-4: the released code's.
        compat: `released` keeps one entry more, as the released code does. Default `paper`.
        survey: thresholds of the whole model, if `vectors` is one shard of it. Default: computed
            from `vectors`.

    Computed in the dtype of the task vectors (float32), the subspaces in float64. A task vector of
    zeros has λ_t = 0 (the released code divides by zero). With one task U are its leading left
    singular vectors. The gradient is the closed form, 2·T products of one row a step, checked
    against autograd. Memory beside base, task vectors and result: the task matrices of one tensor
    once more, and 5 matrices.

    Source: Wei et al. 2025, arXiv:2501.01230; steps, rates and which tensors are merged as in the
    released code, which is FusionBench's.

    >>> experts = {"a": {"h.0.w": torch.tensor([[2.0, 0.0]])}, "b": {"h.0.w": torch.zeros(1, 2)}}
    >>> v = TaskVectors.from_state_dicts({"h.0.w": torch.zeros(1, 2)}, experts)
    >>> [round(x, 4) for x in doge_ta(v, scale=0.5, density=0.5, steps=0)["h.0.w"][0].tolist()]
    [0.5, 0.0]
    """
    if survey is None:
        survey = run_surveys([doge_survey(vectors, density=density, compat=compat)])
    smallest = survey.smallest

    def fill(name: str, out: Tensor) -> None:
        base = vectors.base[name]
        if not is_merged(name, base):
            out.copy_(base)
            return
        deltas = vectors.deltas[name]
        norms = torch.linalg.vector_norm(deltas, dim=(1, 2), dtype=torch.float64).tolist()
        factors = [scale / norm if norm else 0.0 for norm in norms]
        change = descended(deltas, factors, subspace, steps, learning_rate)
        merged = torch.zeros_like(change)
        for delta, factor, least in zip(deltas, factors, smallest, strict=True):
            merged += torch.where(delta.abs() >= least, delta + change, 0.0) * factor
        mix_tensor(out, base, merged[None], [1.0])

    return vectors.build(fill)


def doge_survey(
    vectors: TaskVectors,
    *,
    density: float = 0.3,
    compat: Literal["paper", "released"] = "paper",
) -> Survey[TrimThresholds]:
    """Smallest kept magnitude of each task vector, over the merged matrices of a whole model."""
    names = [name for name, base in vectors.base.items() if is_merged(name, base)]
    kept = chosen(vectors.deltas, names)
    counted: Literal["paper", "fusionbench"] = "paper" if compat == "paper" else "fusionbench"
    return (yield from threshold_survey(kept, len(vectors.tasks), density, counted))


def is_merged(name: str, base: Tensor) -> bool:
    """Whether a tensor is a matrix inside a numbered block (no embedding, head, bias or norm)."""
    return base.ndim == 2 and base.is_floating_point() and bool(base.numel() and block_of(name))


def descended(
    deltas: Tensor, factors: Sequence[float], subspace: int, steps: int, learning_rate: float
) -> Tensor:
    """Δ [m, n] after `steps` projected Adam steps, see `doge_ta`; `factors` are the T λ_t."""
    rows = deltas.transpose(0, 1).contiguous()  # [m, T, n]
    change = torch.zeros_like(rows[:, 0], memory_format=torch.contiguous_format)
    if not steps or not any(factors):
        return change
    weights = rows.new_tensor(factors)
    total = float(weights.sum())
    inner = rows @ rows.mT  # [m, T, T]
    aim = (inner.diagonal(dim1=1, dim2=2) - inner @ weights)[..., None]
    shared = shared_subspace(deltas, subspace)
    adam = torch.optim.Adam([change], lr=learning_rate, fused=True)
    for _ in range(steps):
        left = torch.baddbmm(aim, rows, change[..., None], alpha=-total)  # [m, T, 1]
        gradient = torch.bmm(left.mT, rows)[:, 0].mul_(-2 * total)
        change.grad = torch.addmm(gradient, shared, shared.T @ gradient, alpha=-1)
        adam.step()
    return change.detach()


def shared_subspace(deltas: Tensor, subspace: int) -> Tensor:
    """Basis U [m, min(m, n) // subspace] that all tasks share; columns of zeros may be among it."""
    known, rank = deltas.dtype, min(deltas.shape[1:])
    share, count = rank // len(deltas), rank // subspace
    if not share or not count:
        return deltas.new_zeros(deltas.shape[1], 0)
    if len(deltas) == 1:
        return leading(wide_copy(deltas[0]), count, known).left.to(known)

    def own(delta: Tensor) -> Tensor:
        return leading(wide_copy(delta), share, known).left

    every = torch.cat(map_single_threaded(own, list(deltas)), 1)
    return leading(every, min(count, *every.shape), known).left.to(known)
