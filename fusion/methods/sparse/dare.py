"""DARE: drop entries of task vectors at random, rescale the rest, then merge."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.sparse.ties import Thresholds, ties, ties_survey
from fusion.methods.static.average import simple_average
from fusion.methods.static.task_arithmetic import task_arithmetic
from fusion.task_vectors.sharded_reduce import Survey
from fusion.task_vectors.task_vectors import Deltas, TaskVectors
from fusion.task_vectors.threads import in_threads


def dare(
    vectors: TaskVectors,
    *,
    density: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    rescale: bool = True,
    merge: Literal["task_arithmetic", "average", "ties"] = "task_arithmetic",
    scale: float | None = None,
    trim_density: Annotated[float, Interval(ge=0, le=1)] = 0.2,
    only_matrices: bool = False,
    seed: int = 0,
    compat: Literal["paper", "fusionbench"] = "paper",
    survey: Thresholds | None = None,
) -> dict[str, Tensor]:
    """DARE: drop entries of task vectors at random, rescale the rest, then merge.

    θ = merge(θ₀, m_t ⊙ τ_t / density), m_tj = 1 with probability `density`, else 0. Whether an
    entry is kept depends on (seed, task, tensor, entry) only: not on shards, on the order or number
    of tasks, on threads, or on the device. Random numbers are drawn on the CPU.

    Args:
        vectors: base and task vectors.
        density: fraction kept, the paper's 1 − p. 0 gives the base, 1 the plain method. Default
            0.5, FusionBench's; the paper goes down to 0.1 and less.
        rescale: divide the kept entries by the density, so that the expectation stays. Default
            true.
        merge: method that merges the remaining task vectors. Default task arithmetic.
        scale: λ of task arithmetic or TIES. Default: that of the method, 0.3 or 1 (0.5 for TIES
            with `compat: fusionbench`). The average has none.
        trim_density: `density` of TIES' trim. Default 0.2, its paper's.
        only_matrices: drop entries of tensors with two axes only, and keep all others.
            (FusionBench's `only_on_linear_weights`, which spares embeddings too.) Default false.
        seed: of the random masks.
        compat: `fusionbench` runs TIES as FusionBench does (its option `compat`, merge sum). Its
            random masks come from one global stream and are not reproduced.
        survey: TIES' thresholds of the whole model, if `vectors` is one shard of it.

    Raises:
        InputError: a scale for the average.

    Source: Yu et al. 2024, arXiv:2311.03099, §3 (drop and rescale).

    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(4)}, {"a": {"w": torch.ones(4)}})
    >>> dare(v, density=0.5, scale=1.0, seed=1)["w"].unique().tolist()
    [0.0, 2.0]
    """
    left = dropped(vectors, density, rescale, only_matrices, seed)
    if merge == "ties":
        options = ties_options(trim_density, scale, compat)
        return ties(left, survey=survey, **options)
    if merge == "average":
        if scale is not None:
            raise InputError(f"dare: scale: {scale:g}; merge 'average' takes none")
        return simple_average(left)
    return task_arithmetic(left) if scale is None else task_arithmetic(left, scale=scale)


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
    left = dropped(vectors, density, rescale, only_matrices, seed)
    return (yield from ties_survey(left, density=trim_density, compat=compat))


def ties_options(
    trim_density: float, scale: float | None, compat: Literal["paper", "fusionbench"]
) -> dict[str, Any]:
    """The keyword arguments of `ties`, from those of `dare`."""
    if compat == "fusionbench":
        scale = 0.5 if scale is None else scale
        return {"density": trim_density, "scale": scale, "merge": "sum", "compat": compat}
    return {"density": trim_density, "scale": 1.0 if scale is None else scale}


def dropped(
    vectors: TaskVectors, density: float, rescale: bool, only_matrices: bool, seed: int
) -> TaskVectors:
    """Task vectors with dropped entries, computed as they are read; unchanged for density 1."""
    if density == 1:
        return vectors
    factor = 1 / density if rescale and density else 1.0

    def drop(name: str, delta: Deltas) -> Deltas:
        if only_matrices and delta.ndim != 3:
            return delta
        kept = torch.zeros_like(delta, memory_format=torch.contiguous_format)
        if not density:
            return kept

        def drop_row(at: int) -> None:
            mask = keep_mask(tuple(delta.shape[1:]), density, seed, vectors.tasks[at], name)
            torch.mul(delta[at], mask.to(delta.device), out=kept[at])
            kept[at] *= factor

        in_threads(drop_row, range(len(delta)))
        return kept

    return vectors.altered(drop)


def keep_mask(shape: tuple[int, ...], density: float, seed: int, task: str, name: str) -> Tensor:
    """Random mask, bool [*shape] on the CPU, true with probability `density`.

    It is a function of its arguments alone.

    >>> a = keep_mask((1000,), 0.3, 0, "mnist", "w")
    >>> torch.equal(a, keep_mask((1000,), 0.3, 0, "mnist", "w")), 250 < int(a.sum()) < 350
    (True, True)
    """
    words = "\0".join((str(seed), task, name)).encode()
    number = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little", signed=True)
    generator = torch.Generator().manual_seed(number)
    return torch.rand(shape, generator=generator, device="cpu") < density
