"""TIES: trim, elect sign, disjoint merge; streamed over the model, with an exact global cut."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.task_vectors.sharded_reduce import Survey, run_surveys
from fusion.task_vectors.sparsify import Compat, Cut, chunk_size, cut_survey, trimmed_chunks
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
    survey: Cut | None = None,
) -> dict[str, Tensor]:
    """θ = θ₀ + λ·merge_t(τ̂_t): trim each task vector, elect signs, merge what agrees.

    Trim: τ̂_t keeps the floor(d·density + 1e-6) entries of largest magnitude of the whole task
    vector t (d entries), and all entries that tie with the last of them; zeros never count as
    kept. Elect: s_j = sign(Σ_t τ̂_tj), the sign with the larger mass. Disjoint merge: over the
    tasks whose τ̂_tj ≠ 0 has the sign s_j. Where the mass is exactly zero, no sign is elected and
    the merged entry is 0. The mass is summed in task order in the dtype of the task vectors.

    Args:
        vectors: base and task vectors.
        density: fraction kept by the trim; 0 keeps nothing and gives the base. Default 0.2, the
            paper's.
        scale: λ. Default 1, the paper's when no validation data is at hand.
        granularity: `model` cuts each task vector as a whole, as the paper does; `tensor` cuts
            it tensor by tensor, so that every tensor keeps its share.
        merge: `mean` (the paper's), `sum` or `max` (the entry of largest magnitude) of those
            that agree.
        compat: `fusionbench` follows FusionBench's arithmetic: one entry more survives,
            int(d·density) + 1 (so density 0 keeps the maximum); a zero mass takes the majority
            sign of the model, sign(Σ_j s_j); and where that is 0 too, it counts as negative for
            mean and sum, and gives 0 for max. Density 1, where FusionBench fails, keeps all.
            FusionBench's own defaults are scale 0.3 and merge sum.
        survey: the cut of the whole model, where `vectors` is one shard of it; None: surveyed
            here.

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
            cut = run_surveys([cut_survey({name: deltas}, len(vectors.tasks), density, compat)])
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
) -> Survey[Cut | None]:
    """The cut of a whole model from its shards; None where every tensor is cut by itself.

    It has the parameters of `ties`; `scale` and `merge` change nothing here.
    """
    if granularity == "tensor":
        return None
    return (yield from cut_survey(vectors.deltas, len(vectors.tasks), density, compat))


def merge_tensor(
    out: Tensor,
    base: Tensor,
    deltas: Tensor,
    cut: Cut,
    *,
    scale: float,
    merge: Merge,
    compat: Compat,
) -> None:
    """One tensor of `ties`, chunk by chunk: `base` [*shape], `deltas` [T, *shape]."""
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
    """The merged magnitude [n] of what agrees with the elected side (−1, 0 or 1) in `kept` [T, n].

    `kept` is overwritten.
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
