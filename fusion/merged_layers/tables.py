"""Merged biases, norms, class tokens and embeddings, differentiable in the coding.

Axes: B rows, M models of B/M consecutive rows each, T tasks. These tensors are small beside the
weights of a layer, so their dense task vectors are read. Low-rank factors are multiplied out, and
again for the backward pass. A tensor that no expert changes stays the base's, one for all models.
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
    plain = by_model(F.layer_norm(x, x.shape[-1:], eps=eps), max(len(weight), len(bias)))
    return torch.addcmul(bias.unsqueeze(1), plain, weight.unsqueeze(1)).view_as(x)


def merged_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Batch norm of x [B, C, H, W] with merged weight and bias, [M, C] or [1, C] each.

    Statistics are those of each model's B/M rows, which are consecutive.
    """
    models, channels = max(len(weight), len(bias)), x.shape[1]
    weight, bias = (each.to(x.dtype).expand(models, -1).reshape(-1) for each in (weight, bias))
    # Models become channels: [B, C, …] -> [B/M, M·C, …].
    apart = x.reshape(models, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
    found = F.batch_norm(apart, None, None, weight, bias, training=True, eps=eps)
    by_row = found.reshape(len(found), models, channels, *x.shape[2:])
    return by_row.transpose(0, 1).reshape(x.shape)


def by_model(x: Tensor, models: int) -> Tensor:
    """Rows [B, …, d] by the model that takes them: [M, n, d] with n tokens each."""
    return x.reshape(models, -1, x.shape[-1])


def repeated(table: Tensor, rows: int) -> Tensor:
    """The entry of each row's model: [M, …] -> [M·rows, …]; one for all models stays as it is."""
    if rows == 1 or len(table) == 1:
        return table
    return table.unsqueeze(1).expand(-1, rows, *table.shape[1:]).flatten(0, 1)


def merged_rms_norm(x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    """Root mean square normalisation of x [B, …, d] with a merged weight [M, d] or [1, d].

    Source: Zhang and Sennrich 2019, arXiv:1910.07467; `torch.nn.RMSNorm`.
    """
    weight = weight.to(x.dtype)
    if len(weight) == 1:
        return F.rms_norm(x, x.shape[-1:], weight[0], eps)
    plain = by_model(F.rms_norm(x, x.shape[-1:], eps=eps), len(weight))
    return (plain * weight.unsqueeze(1)).view_as(x)


@exact
def merged_embedding(
    ids: Tensor,
    coefficients: Tensor,
    base: Tensor,
    deltas: Tensor | LowRank | Zeros | Recomputed,
    rows_each: int = 1,
) -> Tensor:
    """Entries of a merged embedding table [V, D]: ids [B|1, n] -> [B, n, D].

    Only the requested entries are merged, in float32 (float64).

    Args:
        ids: of B rows, or of one that is the same for all rows.
        coefficients: [M, T].
        base: θ₀ [V, D].
        deltas: τ [T, V, D].
        rows_each: B/M, if `ids` has one row and M > 1. Default 1.

    Returns:
        [B, n, D]; with one row of ids, [1, n, D] if there is one model, or no expert changes the
        table.
    """
    if isinstance(deltas, LowRank):
        deltas = Recomputed(exact(deltas.dense))
    if isinstance(deltas, Recomputed):
        return deltas.through(
            lambda c, made: merged_embedding(ids, c, base, made, rows_each), coefficients
        )
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
        return repeated(each, rows_each)
    dealt = steps.view(len(steps), len(c), -1)  # [T, M, numbers of a model]
    return rows + torch.einsum("mt,tmk->mk", c, dealt).view_as(rows)
