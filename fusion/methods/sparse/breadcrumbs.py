"""Model Breadcrumbs: mask the largest and the smallest entries of task vectors, then add them."""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.methods.sparse.ties import elected_merge
from fusion.methods.static.scales import Scale, Weights, scaled_shares
from fusion.task_vectors.coding import linear
from fusion.task_vectors.elementwise import Change, flat_rows, linear_of_changed, write_changed
from fusion.task_vectors.packed import ENTRIES
from fusion.task_vectors.streaming_topk import row_magnitudes
from fusion.task_vectors.task_vectors import Deltas, TaskVectors, accumulator
from fusion.task_vectors.threads import SERIAL, in_threads, portions

Granularity: TypeAlias = Literal["tensor", "row"]


def breadcrumbs(
    vectors: TaskVectors,
    *,
    density: Annotated[float, Interval(ge=0, le=1)] = 0.15,
    gamma: Annotated[float, Interval(ge=0, le=1)] = 0.006,
    scale: Scale = 0.2,
    weights: Weights = None,
    granularity: Granularity = "tensor",
) -> dict[str, Tensor]:
    """Model Breadcrumbs: θ = θ₀ + λ·Σ_t m_t ⊙ τ_t, m_t masking outliers and small entries.

    Of the d entries of a tensor, the floor(d·γ + 1e-6) largest are masked out, the next
    floor(d·density + 1e-6) are kept, and the rest (the paper's fraction β = 1 − γ − density) is
    masked out too. Entries that tie with a kept entry are kept. So if nothing is larger than the
    rest (d·γ < 1, or equal magnitudes), there are no outliers.

    Args:
        vectors: base and task vectors.
        density: fraction kept; 0 gives the base. Default 0.15.
        gamma: γ, the fraction of largest entries that are masked out. With γ = 0 only small entries
            are masked, and with density 1 as well it is task arithmetic. Default 0.006.
        scale: λ. Default 0.2. The three defaults are the first point of the released code's search;
            the paper chooses them on validation data. A number, a curve over depth, or a number λ_t
            for each task, which multiplies m_t ⊙ τ_t. See `fusion.methods.static.scales`.
        weights: w_t (mergekit's `weight`), in the forms of `weighted_average`; they multiply m_t ⊙
            τ_t. None (default): 1.
        granularity: `tensor` (default, the paper's layers), or `row`: mask each row (the last axis)
            by itself, as the released code does, which keeps 0-d tensors unless density is 0.

    Raises:
        InputError: a scale or weights that fit neither tasks nor tensors.

    Memory beside base, task vectors and result: a copy of one tensor's task vector for each thread;
    with `granularity: row` a copy of one tensor's task vectors.

    Source: Davari & Belilovsky 2023, arXiv:2312.06795 (sparse masks of each layer).

    >>> experts = {"a": {"w": torch.tensor([9.0, 5.0, -4.0, 1.0])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(4)}, experts)
    >>> breadcrumbs(v, density=0.5, gamma=0.25, scale=1.0)["w"].tolist()
    [0.0, 5.0, -4.0, 0.0]
    """

    shares = scaled_shares(vectors, scale, weights, summed=True)
    if granularity == "row":
        return linear(vectors.altered(lambda name, delta: row_band(delta, density, gamma)), shares)
    return linear_of_changed(
        vectors, shares, lambda name, delta: tensor_band(delta, density, gamma)
    )


def breadcrumbs_ties(
    vectors: TaskVectors,
    *,
    density: Annotated[float, Interval(ge=0, le=1)] = 0.15,
    gamma: Annotated[float, Interval(ge=0, le=1)] = 0.006,
    scale: float = 1.0,
    granularity: Granularity = "tensor",
    merge: Literal["mean", "sum"] = "sum",
    compat: Literal["paper", "released"] = "paper",
) -> dict[str, Tensor]:
    """Breadcrumbs with TIES' election: θ = θ₀ + λ·merge_t(m_t ⊙ τ_t), over the tasks that agree.

    The masks m_t are those of `breadcrumbs`. The sign of an entry is elected as in TIES, s_j =
    sign(Σ_t m_tj τ_tj), and only the entries of that sign are merged. If the sum is exactly zero,
    the merged entry is 0.

    Args:
        vectors: base and task vectors.
        density: fraction kept, as in `breadcrumbs`. Default 0.15.
        gamma: γ, the fraction of largest entries that are masked out. Default 0.006.
        scale: λ. Default 1, mergekit's.
        granularity: `tensor` (default) or `row`, as in `breadcrumbs`.
        merge: `sum` (default, mergekit's with weights of 1) or `mean` (TIES' paper; mergekit's
            `normalize: true`) of the entries that agree.
        compat: `released` counts a sum of exactly zero as positive, as mergekit does. Default
            `paper`: TIES' election.

    Other differences from mergekit are those of `breadcrumbs`: entries that tie with a kept one are
    kept, where mergekit keeps those that its sort puts first; and γ·d < 1 masks no outlier, where
    mergekit 0.1.4 then masks the whole tensor. Its defaults (density 1) mask nothing. Memory beside
    base, task vectors and result: a copy of one tensor's task vectors.

    Source: mergekit 0.1.4 (`breadcrumbs_ties`), of Davari & Belilovsky 2023, arXiv:2312.06795, and
    Yadav et al. 2023, arXiv:2306.01708, §4.

    >>> experts = {"a": {"w": torch.tensor([9.0, 5.0, -4.0, 1.0])},
    ...            "b": {"w": torch.tensor([9.0, 1.0, 3.0, 5.0])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(4)}, experts)
    >>> breadcrumbs_ties(v, density=0.5, gamma=0.25)["w"].tolist()
    [0.0, 5.0, -4.0, 5.0]
    """
    left = masked(vectors, density, gamma, granularity)
    return elected_merge(left, scale=scale, merge=merge, zero_is_positive=compat == "released")


def masked(
    vectors: TaskVectors, density: float, gamma: float, granularity: Granularity
) -> TaskVectors:
    """Task vectors without outliers and small entries, computed as they are read."""

    def mask(name: str, delta: Deltas) -> Deltas:
        if granularity == "row":
            return row_band(delta, density, gamma)
        kept = torch.empty(delta.shape, dtype=accumulator(delta.dtype), device=delta.device)
        write_changed(flat_rows(kept), flat_rows(delta), tensor_band(delta, density, gamma))
        return kept

    return vectors.altered(mask)


def band_ranks(size: int, density: float, gamma: float) -> tuple[int, int]:
    """Ranks (first, last) of the kept magnitudes among `size`, 1 the largest; first > last: none.

    >>> band_ranks(100, 0.15, 0.01), band_ranks(10, 0.3, 0.006), band_ranks(10, 0.9, 0.2)
    ((2, 16), (1, 3), (3, 10))
    """
    outliers = math.floor(size * gamma + 1e-6)
    return outliers + 1, min(outliers + math.floor(size * density + 1e-6), size)


def tensor_band(delta: Deltas, density: float, gamma: float) -> Change:
    """The mask of one tensor's task vectors [T, *shape], each as a whole; masked entries are 0."""
    rows, dtype = flat_rows(delta), accumulator(delta.dtype)
    first, last = band_ranks(rows.shape[1], density, gamma)
    if first > last:
        return lambda tasks, span: torch.zeros_like(rows[tasks, span], dtype=dtype)
    top, bottom = (ends.to(dtype)[:, None] for ends in row_magnitudes(rows, (first, last)))
    return lambda tasks, span: between(rows[tasks, span].to(dtype), bottom[tasks], top[tasks])


def row_band(delta: Deltas, density: float, gamma: float) -> Deltas:
    """Mask one tensor's task vectors [T, *shape], row by row (last axis); masked entries are 0."""
    if delta.ndim == 1:  # 0-d tensors
        return delta.clone() if density else torch.zeros_like(delta)
    first, last = band_ranks(delta.shape[-1], density, gamma)
    if first > last:
        return torch.zeros_like(delta)
    kept = torch.empty_like(delta, memory_format=torch.contiguous_format)
    width = delta.shape[-1]
    rows, found = delta.reshape(-1, width), kept.view(-1, width)
    step = max(1, (SERIAL if delta.device.type == "cpu" else ENTRIES) // width)

    def work(portion: slice) -> None:
        for start in range(portion.start, portion.stop, step):
            some = slice(start, min(start + step, portion.stop))
            ranked = rows[some].abs().topk(last, dim=-1, sorted=True).values
            ends = ranked[:, last - 1 :], ranked[:, first - 1 : first]
            found[some] = between(rows[some], *ends)

    in_threads(work, portions(len(rows), step))
    return kept


def between(delta: Tensor, bottom: Tensor, top: Tensor) -> Tensor:
    """`delta` where bottom <= |delta| <= top; elsewhere 0.

    By bits: kept entries are anded with ones. `torch.where` branches at every entry on a CPU, which
    costs four times as much where the mask is irregular.
    """
    kind = torch.int64 if delta.dtype == torch.float64 else torch.int32
    size, within = delta.abs(), torch.empty(delta.shape, dtype=kind, device=delta.device)
    below = torch.empty_like(within)
    torch.ge(size, bottom, out=within)
    torch.le(size, top, out=below)
    return within.bitwise_and_(below).neg_().bitwise_and_(delta.view(kind)).view(delta.dtype)
