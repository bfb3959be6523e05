"""TIES-Merging (trim, elect sign, disjoint merge) in chunks, with exact thresholds of the model."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.task_vectors.sharded_reduce import Survey, run_surveys
from fusion.task_vectors.sparsify import (
    Compat,
    TrimThresholds,
    chunk_size,
    threshold_survey,
    trimmed_chunks,
)
from fusion.task_vectors.task_vectors import TaskVectors, accumulator
from fusion.task_vectors.threads import in_threads, portions

CONTIGUOUS = torch.contiguous_format

Merge: TypeAlias = Literal["mean", "sum", "max"]
Granularity: TypeAlias = Literal["model", "tensor"]


def ties(
    vectors: TaskVectors,
    *,
    density: Annotated[float, Interval(ge=0, le=1)] = 0.2,
    scale: float = 1.0,
    granularity: Granularity = "model",
    merge: Merge = "mean",
    compat: Compat = "paper",
    survey: TrimThresholds | None = None,
) -> dict[str, Tensor]:
    """TIES: trim each task vector, elect signs, merge the entries that agree with the sign.

    θ = θ₀ + λ·merge_t(τ̂_t). Trim: τ̂_t keeps the floor(d·density + 1e-6) entries of largest
    magnitude of the whole task vector t (d entries), and all entries that tie with the last of
    them; zeros never count as kept. Elect: s_j = sign(Σ_t τ̂_tj). Disjoint merge: over the tasks
    whose τ̂_tj ≠ 0 has the sign s_j. If the sum is exactly zero, no sign is elected and the merged
    entry is 0. The sum is made in task order in the dtype of the task vectors.

    Args:
        vectors: base and task vectors.
        density: fraction kept by the trim; 0 keeps nothing and gives the base. Default 0.2, the
            paper's.
        scale: λ. Default 1, the paper's without validation data.
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
        passes = ties_survey(
            vectors,
            density=density,
            scale=scale,
            granularity=granularity,
            merge=merge,
            compat=compat,
        )
        survey = run_surveys([passes])
    whole = survey

    def fill(name: str, out: Tensor) -> None:
        deltas = vectors.deltas[name]
        cut = whole
        if cut is None:  # granularity "tensor"
            cut = run_surveys(
                [threshold_survey({name: deltas}, len(vectors.tasks), density, compat)]
            )
        merge_tensor(out, vectors.base[name], deltas, cut, scale=scale, merge=merge, compat=compat)

    return vectors.build(fill)


def ties_survey(
    vectors: TaskVectors,
    *,
    density: float = 0.2,
    scale: float = 1.0,
    granularity: Granularity = "model",
    merge: Merge = "mean",
    compat: Compat = "paper",
) -> Survey[TrimThresholds | None]:
    """Thresholds of a whole model, by a survey of its shards; None if each tensor has its own.

    It has the parameters of `ties`; `scale` and `merge` have no effect.
    """
    if granularity == "tensor":
        return None
    return (yield from threshold_survey(vectors.deltas, len(vectors.tasks), density, compat))


def merge_tensor(
    out: Tensor,
    base: Tensor,
    deltas: Tensor,
    cut: TrimThresholds,
    *,
    scale: float,
    merge: Merge,
    compat: Compat,
) -> None:
    """TIES for one tensor, chunk by chunk: `base` [*shape], `deltas` [T, *shape]."""
    dtype = accumulator(out.dtype, base.dtype, deltas.dtype)
    target = (
        out.detach() if out.is_contiguous() else torch.empty_like(out, memory_format=CONTIGUOUS)
    )
    flat, origin = target.view(-1), base.reshape(-1)
    rows = [delta.reshape(-1) for delta in deltas]

    def merge_portion(portion: slice) -> None:
        for span, mass, kept in trimmed_chunks(rows, cut.smallest, portion):
            sign = mass.sign_()
            if cut.tiebreak:
                sign[sign == 0] = cut.tiebreak
            side = torch.where(sign > 0, 1.0, -1.0).to(sign) if compat == "fusionbench" else sign
            size = disjoint(kept, side, merge)
            merged = size.mul_(sign if merge == "max" else side).to(dtype)
            torch.add(origin[span].to(dtype), merged, alpha=scale, out=flat[span])

    in_threads(merge_portion, portions(len(flat), chunk_size(flat)))
    if not out.is_contiguous():
        out.copy_(target)


def disjoint(kept: Tensor, side: Tensor, merge: Merge) -> Tensor:
    """Disjoint merge: magnitude [n] of the entries in [T, n] that agree with the elected sign.

    Args:
        kept: trimmed task vectors; overwritten.
        side: elected sign [n], −1, 0 or 1.
        merge: `mean`, `sum` or `max`.
    """
    total, number = torch.zeros_like(side), torch.zeros_like(side)
    for row in kept:
        agreeing = row.mul_(side).clamp_min_(0)
        if merge == "max":
            torch.maximum(total, agreeing, out=total)
            continue
        total.add_(agreeing)
        if merge == "mean":
            number.add_(agreeing.sign_())
    return total.div_(number.clamp_min_(1)) if merge == "mean" else total
