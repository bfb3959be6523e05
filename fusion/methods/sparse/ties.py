"""TIES-Merging (trim, elect sign, disjoint merge) in chunks, with exact thresholds of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.static.coefficients import tensor_weights
from fusion.methods.static.scales import Scale, Weights, scaled_shares
from fusion.staging import sent
from fusion.task_vectors.elementwise import shares
from fusion.task_vectors.sharded_reduce import Survey, run_surveys
from fusion.task_vectors.sparsify import (
    Compat,
    TrimThresholds,
    tensor_survey,
    threshold_survey,
    trimmed_chunks,
)
from fusion.task_vectors.task_vectors import TaskVectors, accumulator
from fusion.task_vectors.threads import in_threads

CONTIGUOUS = torch.contiguous_format

Merge: TypeAlias = Literal["mean", "sum", "max"]
Granularity: TypeAlias = Literal["model", "tensor"]
Thresholds: TypeAlias = TrimThresholds | Mapping[str, TrimThresholds]
"""Of a whole model, or of each tensor by its name."""


def ties(
    vectors: TaskVectors,
    *,
    density: Annotated[float, Interval(ge=0, le=1)] = 0.2,
    scale: Scale = 1.0,
    weights: Weights = None,
    granularity: Granularity = "model",
    merge: Merge = "mean",
    compat: Compat = "paper",
    survey: Thresholds | None = None,
) -> dict[str, Tensor]:
    """TIES: trim each task vector, elect signs, merge the entries that agree with the sign.

    θ = θ₀ + λ·merge_t(τ̂_t). Trim: τ̂_t keeps the floor(d·density + 1e-6) entries of largest
    magnitude of the whole task vector t (d entries), and all entries that tie with the last of
    them; zeros never count as kept. Elect: s_j = sign(Σ_t τ̂_tj). Disjoint merge: over the tasks
    whose τ̂_tj ≠ 0 has the sign s_j. If the sum is exactly zero, no sign is elected and the merged
    entry is 0. The order of the tasks does not change which sign is elected
    (`fusion.task_vectors.equal_values`).

    Args:
        vectors: base and task vectors.
        density: fraction kept by the trim; 0 keeps nothing and gives the base. Default 0.2, the
            paper's.
        scale: λ. Default 1, the paper's without validation data. A number, a curve over depth, or a
            number λ_t for each task. λ_t multiplies τ̂_t after the trim, which it would not change,
            and before the election, so that a task votes with what it adds (as mergekit's weight);
            the mean divides by the number of tasks that agree, as for one λ. See
            `fusion.methods.static.scales`.
        weights: w_t (mergekit's `weight`), in the forms of `weighted_average`. They multiply τ̂_t
            like λ_t, and the mean divides by the sum of the weights that agree, so a common factor
            of all weights does not matter to it. None (default): 1.
        granularity: `model` (default) trims each task vector as a whole, as the paper does;
            `tensor` trims each tensor by itself, so that every tensor keeps its share.
        merge: `mean` (default, the paper's), `sum` or `max` (the entry of largest magnitude) of the
            entries that agree.
        compat: `fusionbench` follows FusionBench's arithmetic. One entry more is kept,
            int(d·density) + 1, so density 0 keeps the maximum. If a sum is zero, the majority sign
            of the model is elected, sign(Σ_j s_j); if that is 0 too, it counts as negative for mean
            and sum, and gives 0 for max. Density 1, where FusionBench fails, keeps all.
            FusionBench's own defaults are scale 0.3 and merge sum. Default `paper`.
        survey: thresholds of the whole model, if `vectors` is one shard of it. Default: computed
            from `vectors`.

    Raises:
        InputError: a scale or weights that fit neither tasks nor tensors; a negative weight in a
            mean.

    Memory beside base, task vectors and result: a few chunks.

    Source: Yadav et al. 2023, arXiv:2306.01708, §4 and Algorithm 1.

    >>> import torch
    >>> experts = {"a": {"w": torch.tensor([4.0, -1.0, 2.0])},
    ...            "b": {"w": torch.tensor([2.0, 5.0, -1.0])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(3)}, experts)
    >>> ties(v, density=2 / 3)["w"].tolist()  # keeps 4, 2 of a; 2, 5 of b
    [3.0, 5.0, 2.0]
    """
    if survey is None:
        survey = run_surveys(
            [ties_survey(vectors, density=density, granularity=granularity, compat=compat)]
        )
    whole, shares_of = survey, scaled_shares(vectors, scale, weights)
    votes = {} if weights is None or merge != "mean" else divisors(vectors, weights)

    def cut(name: str) -> TrimThresholds:
        return whole if isinstance(whole, TrimThresholds) else whole[name]

    def fill(name: str, out: Tensor, base: Tensor, deltas: Tensor) -> None:
        mine = shares_of(name)
        merge_tensor(
            out, base, deltas, cut(name), scale=mine.scale, factors=mine.coefficients,
            votes=votes.get(name, ()), merge=merge, compat=compat,
        )  # fmt: skip

    def same(name: str) -> tuple[object, ...]:
        return cut(name), shares_of(name).key, tuple(votes.get(name, ()))

    return vectors.build_runs(fill, same)


def divisors(vectors: TaskVectors, weights: Weights) -> dict[str, list[float]]:
    """Tensor name -> weights [T] that a mean divides by.

    Raises:
        InputError: wrong or negative weights.
    """
    found = tensor_weights(vectors, weights)
    for name, column in found.items():
        for task, weight in zip(vectors.tasks, column, strict=True):
            if weight < 0:
                raise InputError(
                    f"weights: task {task!r}: {weight:g} for tensor {name!r}; 0 or more needed in a"
                    " mean"
                )
    return found


def ties_survey(
    vectors: TaskVectors,
    *,
    density: float = 0.2,
    granularity: Granularity = "model",
    compat: Compat = "paper",
) -> Survey[Thresholds]:
    """Thresholds of a whole model, by a survey of its shards.

    If each tensor has thresholds of its own, a mapping from its name to them.
    """
    if granularity == "tensor":
        return (yield from tensor_survey(vectors, density, compat))
    return (yield from threshold_survey(vectors.deltas, len(vectors.tasks), density, compat))


def elected_merge(
    vectors: TaskVectors, *, scale: float, merge: Literal["mean", "sum"], zero_is_positive: bool
) -> dict[str, Tensor]:
    """TIES' election and disjoint merge, without its trim: zeros have no vote.

    Args:
        vectors: base and task vectors that are sparse already.
        scale: λ.
        merge: of the entries that agree with the elected sign.
        zero_is_positive: whether a sum of exactly zero elects the positive sign; otherwise none.
    """
    nothing = TrimThresholds((0.0,) * len(vectors.tasks), tiebreak=float(zero_is_positive))
    return ties(vectors, density=1.0, scale=scale, merge=merge, survey=nothing)


def merge_tensor(
    out: Tensor,
    base: Tensor,
    deltas: Tensor,
    cut: TrimThresholds,
    *,
    scale: float,
    factors: Sequence[float],
    votes: Sequence[float],
    merge: Merge,
    compat: Compat,
) -> None:
    """TIES for one tensor, chunk by chunk: `base` [*shape], `deltas` [T, *shape].

    `factors`: T numbers that multiply the trimmed task vectors; `votes`: see `disjoint`.
    """
    dtype = accumulator(out.dtype, base.dtype, deltas.dtype)
    target = (
        out.detach() if out.is_contiguous() else torch.empty_like(out, memory_format=CONTIGUOUS)
    )
    flat, origin = target.view(-1), base.reshape(-1)
    rows = deltas.reshape(len(deltas), len(flat))

    def merge_portion(portion: slice) -> None:
        for span, sign, kept in trimmed_chunks(rows, cut.smallest, portion, factors):
            if cut.tiebreak:
                sign = torch.where(sign == 0, cut.tiebreak, sign)
            side = torch.where(sign > 0, 1.0, -1.0).to(sign) if compat == "fusionbench" else sign
            size = disjoint(kept, side, merge, votes)
            merged = size.mul_(sign if merge == "max" else side).to(dtype)
            torch.add(origin[span].to(dtype), merged, alpha=scale, out=flat[span])

    in_threads(merge_portion, shares(rows))
    if not out.is_contiguous():
        out.copy_(target)


def disjoint(kept: Tensor, side: Tensor, merge: Merge, votes: Sequence[float] = ()) -> Tensor:
    """Disjoint merge: magnitude [n] of the entries in [T, n] that agree with the elected sign.

    Args:
        kept: trimmed task vectors; overwritten.
        side: elected sign [n], −1, 0 or 1.
        merge: `mean`, `sum` or `max`.
        votes: T weights, of which a mean divides by the sum of those that agree; default: 1 each.
    """
    if kept.device.type != "cpu":  # all tasks at once: few kernels
        agreeing = kept.mul_(side).clamp_min_(0)
        if merge == "max":
            return agreeing.amax(0)
        total = agreeing.sum(0)
        if merge == "sum":
            return total
        number = agreeing.sign_()
        if votes:
            number.mul_(sent(torch.tensor(votes, dtype=side.dtype), side.device)[:, None])
        return total.div_(divisor(number.sum(0), votes))
    total, number = torch.zeros_like(side), torch.zeros_like(side)
    for row, vote in zip(kept, votes or [1.0] * len(kept), strict=True):
        agreeing = row.mul_(side).clamp_min_(0)
        if merge == "max":
            torch.maximum(total, agreeing, out=total)
            continue
        total.add_(agreeing)
        if merge == "mean":
            number.add_(agreeing.sign_(), alpha=vote)
    return total.div_(divisor(number, votes)) if merge == "mean" else total


def divisor(number: Tensor, votes: Sequence[float]) -> Tensor:
    """`number` [n] of tasks that agree, or the sum of their `votes`, with 1 for 0; in place."""
    return number.masked_fill_(number == 0, 1) if votes else number.clamp_min_(1)
