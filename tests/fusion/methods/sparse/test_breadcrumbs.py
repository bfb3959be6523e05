"""Breadcrumbs by hand and against sorted magnitudes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.methods.sparse.breadcrumbs import band_ranks, breadcrumbs, breadcrumbs_ties
from fusion.methods.static.task_arithmetic import task_arithmetic
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.laws import SCHEMAS, TASKS, assert_same_bits, toy


def one(values: Any, dtype: torch.dtype = torch.float32) -> TaskVectors:
    delta = torch.tensor([values], dtype=dtype)
    return TaskVectors(("a",), {"w": torch.zeros_like(delta[0])}, {"w": delta})


def kept(values: Any, **options: Any) -> list[Any]:
    found: list[Any] = breadcrumbs(one(values), scale=1.0, **options)["w"].tolist()
    return found


def test_by_hand() -> None:
    values = [1.0, -9.0, 5.0, -3.0, 7.0, 0.5, -2.0, 4.0, -6.0, 8.0]
    assert kept(values, density=0.3, gamma=0.2) == [0, 0, 5, 0, 7, 0, 0, 0, -6, 0]
    assert kept(values, density=0.3, gamma=0.0) == [0, -9, 0, 0, 7, 0, 0, 0, 0, 8]


def test_few_entries_have_no_outliers() -> None:
    # γ·d < 1: nothing is masked out at the top. A slice [a:-0] would take everything.
    assert kept([3.0, -2.0, 1.0, 0.5], density=1.0, gamma=0.2) == [3, -2, 1, 0.5]
    assert kept([3.0, -2.0, 1.0, 0.5], density=0.5, gamma=0.006) == [3, -2, 0, 0]


def test_equal_magnitudes_are_no_outliers() -> None:
    assert kept([1.0, -1.0, 1.0, 1.0], density=0.25, gamma=0.5) == [1, -1, 1, 1]
    assert kept([2.0, -1.0, 1.0, 0.0], density=0.25, gamma=0.25) == [0, -1, 1, 0]


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_ends(granularity: Any) -> None:
    for schema in SCHEMAS:
        vectors = toy(schema)
        for options in ({"density": 0.0}, {"density": 0.0, "gamma": 0.5}):
            assert_same_bits(breadcrumbs(vectors, granularity=granularity, **options), vectors.base)
        plain = task_arithmetic(vectors, scale=0.2)
        whole = breadcrumbs(vectors, density=1.0, gamma=0.0, granularity=granularity)
        assert_same_bits(whole, plain)
    assert_same_bits(breadcrumbs(toy(), gamma=1.0), toy().base)


def test_ranks() -> None:
    assert band_ranks(10, 0.3, 0.3) == (4, 6)  # 10 · 0.3 is 2.999…
    assert band_ranks(0, 0.5, 0.5) == (1, 0)
    assert band_ranks(1, 0.15, 0.006) == (1, 0)
    assert band_ranks(1000, 0.15, 0.006) == (7, 156)


def textbook(delta: Tensor, density: float, gamma: float) -> Tensor:
    """One row [d] of distinct magnitudes, by sorting."""
    order = delta.abs().argsort(descending=True)
    first = math.floor(len(delta) * gamma + 1e-6)
    chosen = order[first : first + math.floor(len(delta) * density + 1e-6)]
    return torch.zeros_like(delta).index_copy(0, chosen, delta[chosen])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_against_a_sort(granularity: Any, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(3, 20, 50, generator=generator, dtype=dtype)
    base = torch.randn(20, 50, generator=generator, dtype=dtype)
    vectors = TaskVectors(TASKS, {"w": base}, {"w": deltas})
    for density, gamma in ((0.15, 0.006), (0.4, 0.1), (0.9, 0.3), (0.001, 0.0)):
        merged = breadcrumbs(vectors, density=density, gamma=gamma, granularity=granularity)["w"]
        rows = deltas.reshape(3, -1) if granularity == "tensor" else deltas.reshape(60, 50)
        masked = torch.stack([textbook(row, density, gamma) for row in rows])
        wanted = base.double() + 0.2 * masked.view_as(deltas).double().sum(0)
        torch.testing.assert_close(merged, wanted.to(dtype))


def test_scalars_are_rows_of_their_own() -> None:
    assert kept(3.0, density=0.5, granularity="row") == 3
    assert kept(3.0, density=0.5) == 0
    assert kept(3.0, density=1.0) == 3


def test_with_election_by_hand() -> None:
    deltas = torch.tensor([[9.0, 5.0, -4.0, 1.0, 2.0], [9.0, 1.0, 3.0, 5.0, -2.0]])
    vectors = TaskVectors(("a", "b"), {"w": torch.zeros(5)}, {"w": deltas})
    # γ masks the 9s; of the others three are kept: 5, −4, 2 and 5, 3, −2
    options: dict[str, Any] = {"density": 0.6, "gamma": 0.2}
    assert breadcrumbs_ties(vectors, **options)["w"].tolist() == [0, 5, -4, 5, 0]
    released = breadcrumbs_ties(vectors, **options, compat="released")["w"].tolist()
    assert released == [0, 5, -4, 5, 2]  # 2 − 2 counts as positive


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize("merge", ["sum", "mean"])
def test_with_election_against_a_sort(merge: Any, granularity: Any, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    deltas = torch.randn(3, 20, 50, generator=generator, dtype=dtype)
    base = torch.randn(20, 50, generator=generator, dtype=dtype)
    vectors = TaskVectors(TASKS, {"w": base}, {"w": deltas})
    rows = deltas.reshape(3, -1) if granularity == "tensor" else deltas.reshape(60, 50)
    kept = torch.stack([textbook(row, 0.4, 0.1) for row in rows]).view_as(deltas).double()
    agrees = kept * kept.sum(0).sign() > 0
    wanted = (kept * agrees).sum(0)
    if merge == "mean":
        wanted /= agrees.sum(0).clamp_min(1)
    found = breadcrumbs_ties(
        vectors, density=0.4, gamma=0.1, scale=0.6, granularity=granularity, merge=merge
    )["w"]
    wide = (base.double() + 0.6 * wanted).to(dtype)
    torch.testing.assert_close(found, wide, rtol=1e-5, atol=1e-6)
