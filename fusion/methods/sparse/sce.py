"""SCE: select entries in which experts differ, weight experts by tensor, erase minority signs."""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.task_vectors.elementwise import combine_tensor, shares, spans, totals
from fusion.task_vectors.equal_values import elected_sign, in_fixed_order
from fusion.task_vectors.streaming_topk import row_magnitudes
from fusion.task_vectors.task_vectors import TaskVectors, accumulator
from fusion.task_vectors.threads import in_threads

Compat: TypeAlias = Literal["paper", "released", "mergekit"]

LEAST = 1e-6
"""mergekit's: the smallest sum of weights that is divided by, and, of mean squares, the smallest
that is normalised."""


def sce(
    vectors: TaskVectors,
    *,
    density: Annotated[float, Interval(ge=0, le=1)] = 0.1,
    scale: float = 1.0,
    compat: Compat = "paper",
) -> dict[str, Tensor]:
    """SCE: θ_k = θ₀,k + λ·Σ_t η_tk τ′_tk, for each tensor k.

    Select: τ̂ keeps the entries of largest variance over the experts, floor(density·m + 1e-6) of
    the m whose variance is not 0, and all that tie with the last of them. Calculate: η_t =
    ‖τ̂_t‖²/Σ_s‖τ̂_s‖², or 1/T if all are zero. Erase: τ′_t is τ̂_t where it has the sign of Σ_t τ̂_t,
    else 0. A sum of exactly zero has no sign. A single expert has no variance; all of it is
    selected.

    Args:
        vectors: base and task vectors.
        density: τ of the paper, the fraction selected. 0 gives the base; 1 selects all, also
            entries without variance. Default 0.1, the paper's for FuseChat.
        scale: λ. Default 1: the paper has none.
        compat: `released`, the authors' code: the selection only enters the weights η, all entries
            are merged; where not all experts agree, the sum is divided by the η of those that do;
            a sum of zero counts as positive. `mergekit`: merges selected entries only, otherwise
            as `released`; the sum of η is at least 1e-6. Default `paper`.

    Variances are computed in float64 and compared in the dtype of the task vectors. Memory beside
    base, task vectors and result: the variances of one tensor.

    Source: Wan et al. 2024, arXiv:2408.07990 (FuseChat), §3 and its algorithm; code:
    github.com/fanqiwan/FuseAI (FuseChat/mergekit).

    >>> experts = {"a": {"w": torch.tensor([3.0, 1.0, 1.0])},
    ...            "b": {"w": torch.tensor([-1.0, 1.0, 0.0])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(3)}, experts)
    >>> [round(x, 4) for x in sce(v, density=0.5)["w"].tolist()]  # the first entry, η = 0.9
    [2.7, 0.0, 0.0]
    """

    def fill(name: str, out: Tensor) -> None:
        base, deltas = vectors.base[name], vectors.deltas[name]
        spread, cut = selection(deltas, density)
        squares = totals(
            deltas, lambda rows, own: selected(rows, own, cut).square().sum(1), beside=[spread]
        )
        weights = normalised(squares, deltas[0].numel(), compat)

        def combine(rows: Tensor, own: Tensor) -> Tensor:
            kept = rows if compat == "released" else selected(rows, own, cut)
            return erased_sum(kept, weights.to(rows), compat)

        combine_tensor(out, base, deltas, combine, scale=scale, beside=[spread])

    return vectors.build(fill)


def selection(deltas: Tensor, density: float) -> tuple[Tensor, Tensor]:
    """Variances [n] of the entries of τ [T, *shape] over experts, and the least that is selected.

    The least is infinite if nothing is selected, and 0 if all is.
    """
    rows = deltas.reshape(len(deltas), -1)
    dtype = accumulator(deltas.dtype)
    spread = torch.empty(rows.shape[1], dtype=dtype, device=rows.device)

    def work(portion: slice) -> None:
        for span in spans(portion, rows):
            ordered = in_fixed_order(rows[:, span])
            spread[span] = variance(ordered.to(torch.float64, copy=True))

    in_threads(work, shares(rows))
    kept = 0
    if 0 < density < 1 and len(rows) > 1:
        kept = math.floor(density * int(torch.count_nonzero(spread)) + 1e-6)
    if kept:
        return spread, row_magnitudes(spread[None], [kept])[0][0].to(spread)
    nothing = density == 0 or (density < 1 and len(rows) > 1)
    return spread, spread.new_tensor(math.inf if nothing else 0.0)


def variance(rows: Tensor) -> Tensor:
    """Variance [n] over the T rows of [T, n], divided by T; overwrites its argument."""
    return rows.sub_(rows.mean(0)).square_().mean(0)


def selected(rows: Tensor, spread: Tensor, cut: Tensor) -> Tensor:
    """τ [T, n] where the variance [n] is at least the cut; elsewhere 0."""
    return torch.where(spread >= cut, rows, 0.0)


def normalised(squares: Tensor, size: int, compat: Compat) -> Tensor:
    """η [T] from the squared lengths [T] of one tensor's task vectors of `size` entries."""
    whole = squares.sum()
    least = LEAST * size if compat == "mergekit" else 0.0
    equal = torch.full_like(squares, 1 / len(squares))
    return torch.where(whole > least, squares / whole, equal)


def erased_sum(kept: Tensor, weights: Tensor, compat: Compat) -> Tensor:
    """Σ_t η_t τ′_t [n] of one chunk, from τ̂ [T, n] and η [T]; see `sce`."""
    sign = elected_sign(kept)
    if compat != "paper":
        sign = torch.where(sign == 0, 1.0, sign)
    agrees = kept * sign > 0
    shares = agrees * weights[:, None]
    merged = (kept * shares).sum(0)
    if compat == "paper":
        return merged
    total = shares.sum(0)
    if compat == "mergekit":
        return merged / total.clamp_min(LEAST)
    return merged / torch.where(total == 0, 1.0, total)
