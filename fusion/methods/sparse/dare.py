"""DARE: drop entries of task vectors at random, rescale the rest, then merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.sparse.ties import Thresholds, ties, ties_survey
from fusion.methods.static.average import weighted_average
from fusion.methods.static.scales import Scale, Weights, scaled_shares
from fusion.methods.static.task_arithmetic import SCALE
from fusion.task_vectors.coding import linear
from fusion.task_vectors.elementwise import Change, flat_rows, linear_of_changed, write_changed
from fusion.task_vectors.random_draws import bernoulli, key_of
from fusion.task_vectors.sharded_reduce import Survey
from fusion.task_vectors.task_vectors import Deltas, TaskVectors, accumulator


def dare(
    vectors: TaskVectors,
    *,
    density: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    rescale: bool = True,
    merge: Literal["task_arithmetic", "average", "ties"] = "task_arithmetic",
    scale: Scale | None = None,
    weights: Weights = None,
    trim_density: Annotated[float, Interval(ge=0, le=1)] = 0.2,
    only_matrices: bool = False,
    seed: int = 0,
    compat: Literal["paper", "fusionbench"] = "paper",
    survey: Thresholds | None = None,
) -> dict[str, Tensor]:
    """DARE: drop entries of task vectors at random, rescale the rest, then merge.

    θ = merge(θ₀, m_t ⊙ τ_t / density), m_tj = 1 with probability `density`, else 0. Whether an
    entry is kept is a hash of (seed, task, tensor, entry), computed on the tensors' device. So it
    depends neither on shards, nor on the order or number of tasks, nor on threads or the device.

    Args:
        vectors: base and task vectors.
        density: fraction kept, the paper's 1 − p. 0 gives the base, 1 the plain method. Default
            0.5, FusionBench's; the paper goes down to 0.1 and less.
        rescale: divide the kept entries by the density, so that the expectation stays. Default
            true.
        merge: method that merges the remaining task vectors. Default task arithmetic.
        scale: λ of task arithmetic or TIES. Default: that of the method, 0.3 or 1 (0.5 for TIES
            with `compat: fusionbench`). The average has none. A number, a curve over depth, or a
            number λ_t for each task, as for these methods: see `task_arithmetic` and `ties`.
        weights: w_t (mergekit's `weight`), in the forms of `weighted_average`: those of the method
            that merges; the average divides by their sum. None (default): 1.
        trim_density: `density` of TIES' trim. Default 0.2, its paper's.
        only_matrices: drop entries of tensors with two axes only, and keep all others.
            (FusionBench's `only_on_linear_weights`, which spares embeddings too.) Default false.
        seed: of the random masks.
        compat: `fusionbench` runs TIES as FusionBench does (its option `compat`, merge sum). Its
            random masks come from one global stream and are not reproduced.
        survey: TIES' thresholds of the whole model, if `vectors` is one shard of it.

    Raises:
        InputError: a scale for the average; a scale or weights that fit neither tasks nor tensors.

    Source: Yu et al. 2024, arXiv:2311.03099, §3 (drop and rescale).

    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(4)}, {"a": {"w": torch.ones(4)}})
    >>> dare(v, density=0.5, scale=1.0, seed=1)["w"].unique().tolist()
    [0.0, 2.0]
    """
    drop = Drop(vectors.tasks, density, rescale, only_matrices, seed)
    if merge == "ties":
        options = ties_options(trim_density, scale, compat)
        return ties(drop.of(vectors), weights=weights, survey=survey, **options)
    if merge == "average" and scale is not None:
        raise InputError(f"dare: scale: {scale}; merge 'average' takes none")
    if merge == "average" and weights is not None:
        return weighted_average(drop.of(vectors), weights=weights)
    if scale is None:
        scale = 1 / len(vectors.tasks) if merge == "average" else SCALE
    shares = scaled_shares(vectors, scale, weights, summed=True)
    if density == 1:
        return linear(vectors, shares)
    return linear_of_changed(vectors, shares, drop.change)


def dare_survey(
    vectors: TaskVectors,
    *,
    density: float = 0.5,
    rescale: bool = True,
    merge: Literal["task_arithmetic", "average", "ties"] = "task_arithmetic",
    trim_density: float = 0.2,
    only_matrices: bool = False,
    seed: int = 0,
    compat: Literal["paper", "fusionbench"] = "paper",
) -> Survey[Thresholds | None]:
    """TIES' thresholds of a whole model after the drop; None for other merges."""
    if merge != "ties":
        return None
    left = Drop(vectors.tasks, density, rescale, only_matrices, seed).of(vectors)
    return (yield from ties_survey(left, density=trim_density, compat=compat))


def ties_options(
    trim_density: float, scale: Scale | None, compat: Literal["paper", "fusionbench"]
) -> dict[str, Any]:
    """The keyword arguments of `ties`, from those of `dare`."""
    if compat == "fusionbench":
        scale = 0.5 if scale is None else scale
        return {"density": trim_density, "scale": scale, "merge": "sum", "compat": compat}
    return {"density": trim_density, "scale": 1.0 if scale is None else scale}


@dataclass(frozen=True)
class Drop:
    """Random drop of entries of task vectors; see `dare`."""

    tasks: tuple[str, ...]
    """Names of the T axis."""
    density: float
    rescale: bool
    only_matrices: bool
    seed: int

    def of(self, vectors: TaskVectors) -> TaskVectors:
        """Task vectors with dropped entries, computed as they are read; unchanged for density 1."""
        if self.density == 1:
            return vectors

        def drop(name: str, delta: Deltas) -> Deltas:
            dtype = accumulator(delta.dtype)
            kept = torch.empty(delta.shape, dtype=dtype, device=delta.device)
            write_changed(flat_rows(kept), flat_rows(delta), self.change(name, delta))
            return kept

        return vectors.altered(drop)

    def change(self, name: str, delta: Deltas) -> Change:
        """The drop for one tensor's task vectors [T, *shape], density < 1."""
        rows, dtype = flat_rows(delta), accumulator(delta.dtype)
        whole = self.only_matrices and delta.ndim != 3
        factor = 1 / self.density if self.rescale and self.density else 1.0
        keys = [mask_key(self.seed, task, name) for task in self.tasks]

        def drop(tasks: slice, span: slice) -> Tensor:
            given = rows[tasks, span]
            if whole:
                return given.to(dtype, copy=True)
            if not self.density:
                return torch.zeros_like(given, dtype=dtype)
            kept = bernoulli(keys[tasks], self.density, span, dtype=dtype, device=rows.device)
            return kept.mul_(given).mul_(factor)

        return drop


def mask_key(seed: int, task: str, name: str) -> int:
    """Key of the mask of one task's tensor."""
    return key_of("\0".join(("dare", str(seed), task, name)))
