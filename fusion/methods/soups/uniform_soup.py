"""Uniform soup: the mean of all ingredients, each counted once."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fusion.errors import InputError, unknown
from fusion.task_vectors.coding import Shares, linear
from fusion.task_vectors.random_draws import GOLDEN, signed
from fusion.task_vectors.sharded_reduce import Survey, run_surveys
from fusion.task_vectors.task_vectors import TaskVectors

CHUNK = 1 << 20


def uniform_soup(
    vectors: TaskVectors,
    *,
    ingredients: Sequence[str] | None = None,
    distinct: bool = True,
    survey: tuple[int, ...] | None = None,
) -> dict[str, Tensor]:
    """Uniform soup: average all ingredients, θ = (1/m)·Σ_i θ_i = θ₀ + (1/m)·Σ_i τ_i.

    Args:
        vectors: base and task vectors, one for each ingredient.
        ingredients: names of the ingredients to average. Default: all.
        distinct: count equal ingredients once. Default true. (The paper's pool holds one model
            twice, which its published code counts twice: false.)
        survey: checksum of each whole ingredient, if `vectors` is one shard of it. Default:
            computed from `vectors`.

    Raises:
        InputError: an unknown name, no ingredients.

    Source: Wortsman et al. 2022, arXiv:2203.05482, §2 (uniform soup).

    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(1)}, {
    ...     "a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}, "c": {"w": torch.tensor([3.0])}})
    >>> uniform_soup(v)["w"].item(), round(uniform_soup(v, distinct=False)["w"].item(), 4)
    (2.0, 1.6667)
    """
    chosen = positions(vectors.tasks, ingredients)
    if survey is None:
        survey = run_surveys([soup_survey(vectors, distinct=distinct)])
    kept = unique(survey, chosen) if distinct else chosen
    weights = [float(i in kept) for i in range(len(vectors.tasks))]
    return linear(vectors, lambda name: Shares(weights, scale=1 / len(kept)))


def soup_survey(vectors: TaskVectors, *, distinct: bool = True) -> Survey[tuple[int, ...]]:
    """Checksum of each whole ingredient; nothing is read if duplicates are allowed."""
    if not distinct:
        return ()
    sums = yield checksums(vectors)
    return tuple(sums.tolist())


def checksums(vectors: TaskVectors) -> Tensor:
    """Checksum of each ingredient's task vectors, int64 [T]: equal if all bits are equal.

    It is a sum over elements of (bits of the element)·(a number made from tensor name and
    position), modulo 2⁶⁴, so checksums of shards can be added. Two different models have equal
    checksums with a probability of about 2⁻⁶³.
    """
    total = torch.zeros(len(vectors.tasks), dtype=torch.int64)
    for name, deltas in vectors.deltas.items():
        rows = deltas.reshape(len(vectors.tasks), -1)
        total = total.to(rows.device, non_blocking=True)
        kind = torch.int64 if rows.dtype == torch.float64 else torch.int32
        salt = zlib.crc32(name.encode()) << 31
        for start in range(0, rows.shape[1], CHUNK):
            part = rows[:, start : start + CHUNK] + 0.0  # -0.0 is 0.0
            place = torch.arange(start, start + part.shape[1], device=rows.device)
            factor = (place + salt) * signed(GOLDEN) | 1
            total += (part.view(kind).to(torch.int64) * factor).sum(1)
    return total.cpu()


def unique(keys: Sequence[object], among: Sequence[int]) -> tuple[int, ...]:
    """Those of some positions whose key does not occur at an earlier one.

    >>> unique("abab", [0, 1, 2])
    (0, 1)
    """
    first: dict[object, int] = {}
    for at in among:
        first.setdefault(keys[at], at)
    return tuple(first.values())


def positions(tasks: Sequence[str], names: Sequence[str] | None) -> tuple[int, ...]:
    """Positions of ingredients on the T axis, in its order; None: all.

    Raises:
        InputError: an unknown name, or no name at all.
    """
    if names is None:
        return tuple(range(len(tasks)))
    for name in names:
        if name not in tasks:
            raise InputError(f"ingredients: {unknown('ingredient', str(name), tasks)}")
    if not names:
        raise InputError("ingredients: none given; at least one needed")
    return tuple(at for at, task in enumerate(tasks) if task in names)
