"""Model Stock: interpolate between the base and the mean of the experts, by their angle."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fusion.task_vectors.coding import Shares, linear_by_measure
from fusion.task_vectors.elementwise import rows_or_columns
from fusion.task_vectors.gram import tensor_gram
from fusion.task_vectors.task_vectors import TaskVectors, accumulator
from fusion.task_vectors.threads import in_threads

Compat: TypeAlias = Literal["paper", "released", "fusionbench", "mergekit"]

EPSILON = 1e-8
"""The authors' epsilon, added to both denominators."""

SHORTEST = 1e-6
"""mergekit's: smaller products of two norms are not divided by."""


def model_stock(
    vectors: TaskVectors, *, filter_wise: bool = False, compat: Compat = "paper"
) -> dict[str, Tensor]:
    """Model Stock: θ_k = r_k·mean_t(θ_t,k) + (1 − r_k)·θ₀,k, for each tensor k.

    r = T·c/(1 + (T − 1)·c), where c is the mean cosine of the T(T−1)/2 pairs of task vectors of the
    tensor. A zero task vector has cosine 0 with all others. A single expert is its own mean, r = 1.

    In the paper angles are acute, which is a property of experts of one task. Experts of different
    tasks can have c ≤ 0. There r is 0 here, which gives the base; the formula would leave the
    segment between base and mean (r = −2 for two experts at 120 degrees), and has a pole at c =
    −1/(T−1). This clamp is ours: neither the authors' code nor FusionBench nor mergekit has it.

    Args:
        vectors: base and task vectors; in the paper, experts of one task.
        filter_wise: a ratio of its own for each row k of a tensor, which is one index on its first
            axis: the weights of one output (a filter). Tensors of one axis are one vector. Default
            false, the paper's layer-wise ratios. mergekit's `filter_wise`, which the authors' code
            does not have. On tensors of more than two axes (convolutions) mergekit takes each
            vector along the last axis; here it is the whole filter.
        compat: `released` takes the cosine of the mean *angle*, adds 1e-8 to both denominators
            (which matters for norms below 1e-3: equal task vectors of norm 1e-4 have r = 0.646 and
            not 1), and allows any negative r. These are the formulas of the authors' notebook,
            which merges two experts; of more, the mean angle is FusionBench's, and `fusionbench` is
            another name of it. `mergekit` takes the mean cosine as the default does, but divides
            by products of norms of at least 1e-6, and allows any negative r. Default `paper`.

    Memory beside base, task vectors and result: a block of T rows. Products are summed in float64.

    Source: Jang et al. 2024, arXiv:2403.19522, eq. (7) and §4; `filter_wise`: mergekit 0.1.4.
    `fusion.task_vectors.gram.model_stock_ratio` computes the same ratio without clamping it.

    >>> experts = {"a": {"w": torch.tensor([2.0, 0.0])},
    ...            "b": {"w": torch.tensor([1.0, 3.0**0.5])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2)}, experts)
    >>> [round(x, 4) for x in model_stock(v)["w"].tolist()]  # 60 degrees: r = 2/3
    [1.0, 0.5774]
    """
    if filter_wise:
        return by_row(vectors, compat)
    ones = [1.0] * len(vectors.tasks)
    return linear_by_measure(
        vectors,
        lambda name, deltas: tensor_gram(deltas),
        lambda products: Shares(ones, scale=float(stock_ratios(products, compat)) / len(ones)),
    )


def by_row(vectors: TaskVectors, compat: Compat) -> dict[str, Tensor]:
    """Model Stock with a ratio of its own for each row of each tensor."""

    def fill(name: str, out: Tensor) -> None:
        base, deltas = vectors.base[name], vectors.deltas[name]
        if not base.numel():
            return
        shape = (base.shape[0] if base.ndim > 1 else 1, -1)
        origin = base.reshape(shape)
        rows = deltas.reshape(len(deltas), *origin.shape)
        target = torch.empty(origin.shape, dtype=out.dtype, device=out.device)
        dtype = accumulator(out.dtype, base.dtype, deltas.dtype)

        def work(span: tuple[slice, slice]) -> None:
            some = rows[:, span[0]].to(dtype)
            wide = some.double().transpose(0, 1)
            ratios = stock_ratios(wide @ wide.mT, compat)
            step = some.sum(0).mul_((ratios / len(rows)).to(dtype)[:, None])
            target[span] = step.add_(origin[span].to(dtype)).to(out.dtype)

        in_threads(work, rows_or_columns(target, 1))
        out.copy_(target.view(out.shape))

    return vectors.build(fill)


def stock_ratios(products: Tensor, compat: Compat = "paper") -> Tensor:
    """Interpolation ratios r [*k] float64, from Gram matrices [*k, T, T] of task vectors.

    >>> stock_ratios(torch.tensor([[4.0, 2.0], [2.0, 4.0]]).double())
    tensor(0.6667, dtype=torch.float64)
    """
    count = products.shape[-1]
    if count == 1:
        return torch.ones_like(products[..., 0, 0])
    lengths = products.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    lengthy = lengths[..., :, None] * lengths[..., None, :]
    first, second = torch.triu_indices(count, count, 1, device=products.device)
    if compat in ("released", "fusionbench"):
        cosine = (products / (lengthy + EPSILON)).clamp(-1, 1)[..., first, second]
        mean = cosine.arccos().mean(-1).cos()
        return count * mean / ((count - 1) * mean + 1 + EPSILON)
    if compat == "mergekit":
        cosine = products / lengthy.clamp_min(SHORTEST)
    else:
        cosine = torch.where(lengthy > 0, products / lengthy, 0.0)
    mean = cosine.clamp(-1, 1)[..., first, second].mean(-1)
    ratio = count * mean / (1 + (count - 1) * mean)
    return ratio if compat == "mergekit" else torch.where(mean > 0, ratio, 0.0)
