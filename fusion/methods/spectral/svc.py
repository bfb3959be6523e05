"""Singular value calibration: shrink the singular values that a merge counts several times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.methods.spectral.svd import leading, tolerance
from fusion.task_vectors.coding import mix_tensor
from fusion.task_vectors.task_vectors import TaskVectors
from fusion.task_vectors.threads import map_single_threaded


def svc(
    vectors: TaskVectors,
    *,
    of: str | Mapping[str, Any] = "task_arithmetic",
    alpha: Annotated[float, Interval(gt=0)] = 0.1,
    merge: Callable[[TaskVectors], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """SVC: rescale the singular values of another merge by how often its tasks share a direction.

    θ = θ₀ + Σ_r γ_r·σ_r·u_r·v_rᵀ for each matrix [m, n], where M = Σ_r σ_r·u_r·v_rᵀ is the merged
    task matrix of the method `of`, γ_r = T / Σ_t max(α, s_rt), and s_rt = ⟨σ_r·v_r, a_rt⟩/‖a_rt‖²
    with a_rt = τ_tᵀu_r, the response of task t in the direction u_r. If several tasks share a
    direction, its s_rt exceed 1 and γ_r shrinks it; if the merge has attenuated it, γ_r enlarges
    it, at most by 1/α. Other tensors are those of the method `of`.

    Args:
        vectors: base and task vectors.
        of: the method that merges: its name, or a mapping of it to its parameters, which may hold
            search spaces. Any method that merges weights alone into one model. Default:
            task arithmetic.
        alpha: α, the least coefficient of a task. Default 0.1: FusionBench's. The released code
            takes 1/T, and 1 after TSV-M.
        merge: merges some tensors by the method `of`.

    A task whose a_rt is rounding (at most max(m, n)·ε·‖τ_t‖) has s_rt = 0. FusionBench instead
    bounds ‖a_rt‖² by 1e-12 from below, whatever the scale of the weights. The merged matrix is not
    rounded to the base's dtype before it is decomposed. After `iso_c` and `iso_cts` all singular
    values are equal, so their directions, and with them the result, depend on rounding. The
    released code leaves out embeddings and projections of texts; FusionBench and this do not.

    Memory beside base, task vectors and result: a few matrices in float64.

    Source: Li et al. 2026, arXiv:2602.05536, algorithm 1, with the responses in the column space
    (the released code's default).

    >>> experts = {"a": {"w": torch.diag(torch.tensor([3.0, 1.0]))},
    ...            "b": {"w": torch.diag(torch.tensor([3.0, 0.0]))}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2, 2)}, experts)
    >>> from fusion.registry import METHODS
    >>> found = METHODS["svc"].merge(v, of={"task_arithmetic": {"scale": 1.0}}, alpha=0.1)
    >>> [[round(x, 4) for x in row] for row in found["w"].tolist()]  # 6 is counted twice
    [[3.0, 0.0], [0.0, 1.8182]]
    """

    def fill(name: str, out: Tensor) -> None:
        base, part = vectors.base[name], vectors.restrict([name])
        if base.ndim != 2 or not base.numel():
            merge(part.into({name: out}))
            return
        start, deltas = base.double(), vectors.deltas[name]
        part = replace(part, base={name: start}, deltas={name: deltas}, arena=None)
        merged = merge(replace(part, results=torch.float64))[name] - start
        mix_tensor(out, base, calibrated(merged, deltas, alpha)[None], [1.0])

    return vectors.build(fill)


def calibrated(merged: Tensor, deltas: Tensor, alpha: float) -> Tensor:
    """The calibrated matrix [m, n] of a merged one, in the dtype of the task matrices.

    Args:
        merged: M [m, n], float64.
        deltas: task matrices [T, m, n].
        alpha: least coefficient of a task.
    """
    known = deltas.dtype
    found = leading(merged, min(merged.shape), known)
    left, right = found.left.T.to(known).contiguous(), found.right.T.to(known).contiguous()
    noise = tolerance(merged, known)

    def coefficients(delta: Tensor) -> Tensor:
        task = delta.detach().clone(memory_format=torch.contiguous_format)
        size = torch.linalg.vector_norm(task, dtype=torch.float64)
        own = left @ task
        squares = torch.linalg.vector_norm(own, dim=1, dtype=torch.float64).square()
        shared = found.values * own.mul_(right).sum(1, dtype=torch.float64)
        there = squares > (noise * size).square()
        return torch.where(there, shared / squares, 0.0).clamp_min(alpha)

    factors = torch.stack(map_single_threaded(coefficients, list(deltas))).mean(0)
    return (found.left * (found.values / factors) @ found.right.T).to(known)
