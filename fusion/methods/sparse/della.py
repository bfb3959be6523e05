"""DELLA: drop entries of task vectors at random, small ones more often, rescale the rest, merge."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from fusion.methods.sparse.ties import elected_merge
from fusion.methods.static.task_arithmetic import task_arithmetic
from fusion.staging import sent
from fusion.task_vectors.elementwise import totals
from fusion.task_vectors.packed import ENTRIES
from fusion.task_vectors.random_draws import key_of, uniform
from fusion.task_vectors.task_vectors import Deltas, TaskVectors, accumulator
from fusion.task_vectors.threads import SERIAL, in_threads

Compat: TypeAlias = Literal["paper", "released", "mergekit"]

SHORTEST = 1e-7
"""mergekit's: smaller sums of magnitudes are not rescaled."""


def della(
    vectors: TaskVectors,
    *,
    density: Annotated[float, Interval(ge=0, le=1)] = 0.7,
    epsilon: Annotated[float, Interval(ge=0, le=1)] = 0.14,
    scale: float = 1.1,
    rescale: bool = True,
    seed: int = 0,
    compat: Compat = "paper",
) -> dict[str, Tensor]:
    """DELLA: θ = θ₀ + λ·merge_t(τ̂_t), τ̂_tj = τ_tj/q_tj with probability q_tj, else 0.

    Drop (MagPrune): within a row, q rises with the rank r of |τ_tj| (0 the smallest of n), q =
    density − ε/2 + ε·r/(n − 1). Elect: s_j = sign(Σ_t τ̂_tj). Fuse: the mean over the tasks whose
    τ̂_tj ≠ 0 has the sign s_j. If the sum is exactly zero, the merged entry is 0.

    Whether an entry is kept depends on (seed, task, tensor, entry) and on its row only: not on
    shards, on the order or number of tasks, on threads, or on the device. Entries of equal
    magnitude have their mean rank, so their order does not matter either.

    Args:
        vectors: base and task vectors.
        density: mean fraction kept, the paper's 1 − p. 0 gives the base; 1 keeps all. Default 0.7,
            that of the released code's example.
        epsilon: ε, how much likelier the largest entry of a row is kept than the smallest. If
            density ± ε/2 would leave [0, 1], the widest ε that does not is taken. 0 is DARE.
            Default 0.14, that of the released code's example.
        scale: λ. Default 1.1, that of the released code's example.
        rescale: divide the kept entries by q, so that the expectation stays. Default true.
        seed: of the random masks.
        compat: `released`, the authors' code: a sum of exactly zero counts as positive. `mergekit`
            too; its ε is half the width (density ± ε), and it rescales a tensor's kept entries by
            one factor, which restores the sum of magnitudes. The random masks of both come from
            one global stream and are not reproduced. Default `paper`.

    Rows are those of the first axis, with all others flattened, so that one is what leads to one
    output; tensors of one axis are one row. For more than two axes, both codes rank along the
    second axis instead. The paper's ranks go up by ε/n; the released code's by ε/(n − 1), as here,
    so that the ends are density ± ε/2.

    Memory beside base, task vectors and result: a copy of one tensor's task vectors.

    Source: Deep, Bhardwaj & Poria 2024, arXiv:2406.11617, §3; code: github.com/declare-lab/della.

    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(3)}, {"a": {"w": torch.ones(3)}})
    >>> della(v, density=1.0, scale=0.5)["w"].tolist()
    [0.5, 0.5, 0.5]
    """
    left = pruned(vectors, density, epsilon, rescale, seed, compat)
    return elected_merge(left, scale=scale, merge="mean", zero_is_positive=compat != "paper")


def della_linear(
    vectors: TaskVectors,
    *,
    density: Annotated[float, Interval(ge=0, le=1)] = 0.7,
    epsilon: Annotated[float, Interval(ge=0, le=1)] = 0.14,
    scale: float = 0.3,
    rescale: bool = True,
    seed: int = 0,
    compat: Literal["paper", "mergekit"] = "paper",
) -> dict[str, Tensor]:
    """DELLA without election: θ = θ₀ + λ·Σ_t τ̂_t, with DELLA's random masks.

    Args:
        vectors: base and task vectors.
        density: mean fraction kept, as in `della`. Default 0.7.
        epsilon: ε of the masks, as in `della`. Default 0.14.
        scale: λ of task arithmetic. Default 0.3, its paper's for eight tasks; mergekit's is 1, with
            a weight for each model.
        rescale: divide the kept entries by their probability. Default true.
        seed: of the random masks, which are those of `della`.
        compat: `mergekit`: ε and the rescaling are mergekit's, as in `della`. Default `paper`.

    Memory beside base, task vectors and result: a copy of one tensor's task vectors.

    Source: Deep, Bhardwaj & Poria 2024, arXiv:2406.11617, §3 (MagPrune); without election as in
    mergekit 0.1.4 (`della_linear`).

    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(3)}, {"a": {"w": torch.ones(3)}})
    >>> della_linear(v, density=1.0, scale=0.5)["w"].tolist()
    [0.5, 0.5, 0.5]
    """
    left = pruned(vectors, density, epsilon, rescale, seed, compat)
    return task_arithmetic(left, scale=scale)


def pruned(
    vectors: TaskVectors, density: float, epsilon: float, rescale: bool, seed: int, compat: Compat
) -> TaskVectors:
    """Task vectors with dropped entries (MagPrune), computed as they are read; unchanged for
    density 1."""
    if density == 1:
        return vectors
    half = min(epsilon if compat == "mergekit" else epsilon / 2, density, 1 - density)
    by_entry = rescale and compat != "mergekit"

    def prune(name: str, delta: Deltas) -> Deltas:
        kept = torch.zeros(delta.shape, dtype=accumulator(delta.dtype), device=delta.device)
        if density and delta[:1].numel():
            for at, task in enumerate(vectors.tasks):
                key = key_of("della", seed, task, name)
                prune_one(kept[at], delta[at], key, density - half, 2 * half, by_entry)
        if rescale and not by_entry:
            restore_sums(kept, delta)
        return kept

    return vectors.altered(prune)


def prune_one(
    out: Tensor, delta: Tensor, key: int, least: float, width: float, rescale: bool
) -> None:
    """MagPrune of one task vector of one tensor.

    Args:
        out: [*shape], written to.
        delta: τ [*shape].
        key: of the random numbers.
        least: q of a row's smallest entry.
        width: how much larger q is of its largest.
        rescale: divide the kept entries by q.
    """
    shape = (delta.shape[0], -1) if delta.ndim > 1 else (1, -1)
    rows, target = delta.reshape(shape), out.view(shape)
    draws = uniform(rows.shape, key, device=rows.device)
    chances = probabilities(rows.shape[1], least, width, rows.device)

    def work(span: slice) -> None:
        part = rows[span].to(out.dtype)
        chance = chances[twice_mean_ranks(part.abs())]
        kept = part / chance if rescale else part
        target[span] = torch.where(draws[span] < chance, kept, 0.0)

    step = SERIAL if rows.device.type == "cpu" else ENTRIES
    step = max(1, step // rows.shape[1])
    in_threads(work, [slice(start, start + step) for start in range(0, len(rows), step)])


def probabilities(size: int, least: float, width: float, device: torch.device) -> Tensor:
    """q of the ranks 0, ½, 1, … n − 1 in a row of n entries: float32 [2n − 1], from a table, so
    that all devices have the same.

    >>> probabilities(3, 0.25, 0.5, torch.device("cpu")).tolist()
    [0.25, 0.375, 0.5, 0.625, 0.75]
    >>> probabilities(1, 0.25, 0.5, torch.device("cpu")).tolist()
    [0.5]
    """
    if size == 1:
        return sent(torch.tensor([least + width / 2]), device)
    shares = torch.arange(2 * size - 1, dtype=torch.float64) / (2 * size - 2)
    return sent((least + width * shares).float(), device)


def twice_mean_ranks(sizes: Tensor) -> Tensor:
    """Twice the rank of each entry in its row of [R, n], 0 the smallest: int64 [R, n].

    Equal entries have the mean of their ranks, which is why it is doubled.

    >>> twice_mean_ranks(torch.tensor([[5.0, 1.0, 5.0, 7.0]])).tolist()
    [[3, 0, 3, 6]]
    """
    order = ascending(sizes)
    ranked = sizes.gather(1, order)
    places = torch.arange(sizes.shape[1], device=sizes.device).expand(sizes.shape)
    equal = ranked[:, 1:] == ranked[:, :-1]
    doubled = 2 * places
    if sizes.device.type != "cpu" or bool(equal.any()):
        edge = torch.zeros_like(sizes[:, :1], dtype=torch.bool)
        first = places.masked_fill(torch.cat([edge, equal], 1), 0).cummax(1).values
        ends = places.masked_fill(torch.cat([equal, edge], 1), sizes.shape[1] - 1)
        doubled = first + ends.flip(1).cummin(1).values.flip(1)
    return torch.empty_like(order).scatter_(1, order, doubled)


def ascending(sizes: Tensor) -> Tensor:
    """Order of the entries of each row of [R, n]: int64. On the CPU by numpy, whose sort uses
    vector instructions and is five times as fast as torch's."""
    if sizes.device.type == "cpu":
        return torch.from_numpy(np.argsort(sizes.numpy(), axis=1))
    return sizes.argsort(dim=1)


def restore_sums(kept: Tensor, delta: Tensor) -> None:
    """Scale each kept task vector [T, *shape] to the sum of magnitudes that it had, in place."""

    def magnitudes(rows: Tensor) -> Tensor:
        return rows.abs().sum(1, dtype=torch.float64)

    before, after = totals(delta, magnitudes), totals(kept, magnitudes)
    tiny = (before < SHORTEST) | (after < SHORTEST)
    factors = torch.where(tiny, 1.0, before / after).to(kept.dtype)
    kept *= factors.view(-1, *[1] * (kept.ndim - 1))
