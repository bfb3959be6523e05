"""Averages of experts: simple, weighted (by task or by tensor), and WiSE-FT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Interval
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.static.coefficients import named_weights, one_expert, tensor_weights
from fusion.task_vectors.coding import Shares, linear
from fusion.task_vectors.task_vectors import TaskVectors


def simple_average(vectors: TaskVectors) -> dict[str, Tensor]:
    """Average the experts' weights: θ = (1/T)·Σ_t θ_t = θ₀ + (1/T)·Σ_t τ_t.

    The base cancels out; it is only the origin of the task vectors.

    Source: Wortsman et al. 2022, arXiv:2203.05482 (uniform soup).

    >>> import torch
    >>> v = TaskVectors.from_state_dicts(
    ...     {"w": torch.ones(1)}, {"a": {"w": torch.tensor([2.0])}, "b": {"w": torch.tensor([4.0])}}
    ... )
    >>> simple_average(v)["w"].tolist()
    [3.0]
    """
    ones = [1.0] * len(vectors.tasks)
    return linear(vectors, lambda name: Shares(ones, scale=1 / len(ones)))


def weighted_average(
    vectors: TaskVectors,
    *,
    weights: Sequence[Any] | Mapping[str, Any] | Tensor | None = None,
    normalize: bool = True,
) -> dict[str, Tensor]:
    """Weighted average of the experts, by task or by task and tensor: θ_k = Σ_t w_tk θ_t,k.

    Computed as (Σ_t w_tk)·θ₀,k + Σ_t w_tk τ_t,k for each tensor k.

    Args:
        vectors: base and task vectors.
        weights: None (default) for equal weights. Else one entry for each task, as a list [T] in
            the order of `vectors.tasks`, or as a mapping from task to entry. An entry is a number,
            or one of two forms with a weight for each tensor: a mapping from tensor name or pattern
            to number (`{"*.mlp.*": 0.7, "*": 0.5}`: an exact name wins, else the longest matching
            pattern), or a list [G] in the order of `vectors.groups`, the floating-point tensors of
            the whole model. A tensor [T] or [T, G] is read as such a list. Names and order are
            always those of the whole model, so a shard takes the same weights.
        normalize: divide by the sum over tasks (no absolute values), for each tensor. Default true,
            as FusionBench. If false, the weights need not sum to 1, and the base is scaled by their
            sum.

    Raises:
        InputError: wrong length, an unknown task or tensor name, a task or tensor without a weight,
            a weight that is no finite number, weights that sum to zero and are to be normalised.

    Source: Matena & Raffel 2022, arXiv:2111.09832, §2 (isotropic merging); layer-wise weights as in
    AdaMerging, Yang et al. 2024, arXiv:2310.02575.

    >>> import torch
    >>> v = TaskVectors.from_state_dicts(
    ...     {"w": torch.ones(1)}, {"a": {"w": torch.tensor([2.0])}, "b": {"w": torch.tensor([4.0])}}
    ... )
    >>> weighted_average(v, weights={"a": 3, "b": 1})["w"].tolist()
    [2.5]
    >>> weighted_average(v, weights=[3, {"w": 1}], normalize=False)["w"].tolist()
    [10.0]
    """
    table = tensor_weights(vectors, weights)
    sums = {name: sum(column) for name, column in table.items()}
    for name, total in sums.items():
        if normalize and total == 0:
            raise InputError(f"weights: those of tensor {name!r} sum to zero; cannot be normalised")

    def shares(name: str) -> Shares:
        column, total = table[name], sums[name]
        if normalize:
            return Shares([weight / total for weight in column])
        return Shares(column, base_scale=total)

    return linear(vectors, shares)


def wise_ft(
    vectors: TaskVectors,
    *,
    alpha: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    blocks: Mapping[str, float] | None = None,
    expert: str | None = None,
) -> dict[str, Tensor]:
    """WiSE-FT: interpolate between base and one expert, θ_k = (1 − α_k)·θ₀,k + α_k·θ_e,k.

    Computed as θ₀,k + α_k·τ_e,k. α = 0 is the base to the bit; α = 1 is the expert up to the
    rounding of its task vector.

    Args:
        vectors: base and task vectors.
        alpha: α_k of all tensors without an entry in `blocks`. Default 0.5, the paper's choice
            without validation data.
        blocks: tensor name or pattern -> α_k in [0, 1] (`{"*.layers.1?.*": 0.8}`: an exact name
            wins, else the longest matching pattern). Default: none, as in the paper.
        expert: name of the expert. Default: the only one.

    Raises:
        InputError: an unknown expert, or none named among several; a pattern that matches no
            tensor; an α_k outside [0, 1].

    Source: Wortsman et al. 2022, arXiv:2109.01903, §3.

    >>> import torch
    >>> v = TaskVectors.from_state_dicts({"w": torch.ones(1)}, {"a": {"w": torch.tensor([3.0])}})
    >>> wise_ft(v, alpha=0.25)["w"].tolist()
    [1.5]
    """
    expert = one_expert("wise_ft", vectors.tasks, expert)
    chosen = [float(task == expert) for task in vectors.tasks]
    alphas = named_weights("wise_ft: blocks", {"*": alpha, **(blocks or {})}, vectors.groups)
    for name, share in alphas.items():
        if not 0 <= share <= 1:
            raise InputError(f"wise_ft: blocks: {share:g} for {name!r}; 0 to 1 allowed")
    return linear(vectors, lambda name: Shares(chosen, scale=alphas[name]))
