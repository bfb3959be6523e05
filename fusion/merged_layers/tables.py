"""Merged biases, norms, class tokens and embeddings, differentiable in the coding.

Axes: M models (1, or one for each sample), T tasks. These tensors are small beside the weights of a
layer, so their dense task vectors are read. Low-rank factors are multiplied out, and again for the
backward pass. A tensor that no expert changes stays the base's, one for all models.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion.merged_layers.low_rank_linear import independent_of_coding
from fusion.merged_layers.precision import exact
from fusion.task_vectors.lazy import Recomputed
from fusion.task_vectors.low_rank import LowRank, Zeros
from fusion.task_vectors.task_vectors import accumulator


@exact
def merged_table(
    coefficients: Tensor, base: Tensor, deltas: Tensor | LowRank | Zeros | Recomputed
) -> Tensor:
    """Merged vector or table θ₀ + Σ_t c_mt τ_t: [M, T] and [T, *shape] -> [M, *shape].

    In float32 (float64). Autograd keeps the coefficients and a view of the task vectors. If no
    expert changes the tensor, the result is the base's, [1, *shape].
    """
    if isinstance(deltas, LowRank):
        deltas = Recomputed(exact(deltas.dense))
    if isinstance(deltas, Recomputed):
        return deltas.through(lambda c, made: merged_table(c, base, made), coefficients)
    wide = accumulator(base.dtype, deltas.dtype)
    if isinstance(deltas, Zeros):
        return independent_of_coding(base[None].to(wide), coefficients)
    tasks = deltas.shape[0]
    rows = deltas.reshape(tasks, -1).to(wide)
    mixed = torch.addmm(base.reshape(1, -1).to(wide), coefficients.to(wide), rows)
    return mixed.view(coefficients.shape[0], *base.shape)


def merged_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation of x [B, …, d] with merged weight and bias, [M, d] or [1, d] each."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if len(weight) == len(bias) == 1:
        return F.layer_norm(x, x.shape[-1:], weight[0], bias[0], eps)

    def beside(table: Tensor) -> Tensor:
        return table.view(len(table), *([1] * (x.ndim - 2)), x.shape[-1])

    return torch.addcmul(beside(bias), F.layer_norm(x, x.shape[-1:], eps=eps), beside(weight))


def merged_rms_norm(x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    """Root mean square normalisation of x [B, …, d] with a merged weight [M, d] or [1, d].

    Source: Zhang and Sennrich 2019, arXiv:1910.07467; `torch.nn.RMSNorm`.
    """
    weight = weight.to(x.dtype)
    if len(weight) == 1:
        return F.rms_norm(x, x.shape[-1:], weight[0], eps)
    beside = weight.view(len(weight), *([1] * (x.ndim - 2)), x.shape[-1])
    return F.rms_norm(x, x.shape[-1:], eps=eps) * beside


@exact
def merged_embedding(
    ids: Tensor, coefficients: Tensor, base: Tensor, deltas: Tensor | LowRank | Zeros | Recomputed
) -> Tensor:
    """Rows of a merged embedding table [V, D]: ids [B|1, n] -> [max(B, M), n, D].

    Only the requested rows are merged. If no expert changes the table, they are the base's, [B|1,
    n, D]. In float32 (float64).
    """
    if isinstance(deltas, LowRank):
        deltas = Recomputed(exact(deltas.dense))
    if isinstance(deltas, Recomputed):
        return deltas.through(lambda c, made: merged_embedding(ids, c, base, made), coefficients)
    wide = accumulator(base.dtype, deltas.dtype)
    if isinstance(deltas, Zeros):
        return independent_of_coding(base[ids].to(wide), coefficients)
    rows, steps = base[ids].to(wide), deltas[:, ids].to(wide)  # [B, n, D], [T, B, n, D]
    c = coefficients.to(wide)
    if len(c) == 1:
        one: Tensor = rows + torch.tensordot(c[0], steps, dims=1)
        return one
    if len(ids) == 1:
        each: Tensor = rows + torch.tensordot(c, steps[:, 0], dims=1)
        return each
    return rows + torch.einsum("bt,tbnd->bnd", c, steps)
