"""knots and core_space by hand, against textbooks in float64, and what linear methods must give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fusion
from fusion.methods.spectral.shared_spaces import (
    directions,
    in_core_space,
    in_output_directions,
)
from fusion.registry import METHODS
from fusion.task_vectors.lazy import LowRankTaskVectors
from fusion.task_vectors.low_rank import LowRank
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import drawn_as_double as drawn
from tests.fusion.laws import TASKS, toy
from tests.fusion.methods.spectral.matrices import vectors_of

NAMES = ("knots", "core_space")


def lora(rank: int, rows: int, columns: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Three task matrices [3, rows, columns] of a rank."""
    up, down = drawn(3, rows, rank, dtype=dtype), drawn(3, rank, columns, seed=1, dtype=dtype)
    return up @ down


def ties(rows: Tensor, density: float) -> Tensor:
    """TIES of [T, n], λ = 1, by its definition."""
    kept = rows.clone()
    for row in kept:
        least = row.abs().sort(descending=True).values[int(row.numel() * density + 1e-6) - 1]
        row[row.abs() < least] = 0
    sign = kept.sum(0).sign()
    agree = kept * (kept * sign > 0)
    found: Tensor = agree.sum(0) / (agree != 0).sum(0).clamp_min(1)
    return found


def test_knots_by_hand() -> None:
    # Both rows of both tasks are equal: one direction (1, 1)/√2, with coordinates √2·(1, 0) and
    # √2·(0, 2). TIES keeps the larger half of each, and all signs agree.
    deltas = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 2.0]]])
    merged = fusion.knots(vectors_of(deltas), of={"ties": {"density": 0.5}})["w"]
    torch.testing.assert_close(merged, torch.tensor([[1.0, 2.0], [1.0, 2.0]]))


def test_core_space_by_hand() -> None:
    # One direction on each side; the core matrices are 6 and 2, and their mean is 4.
    deltas = torch.stack([3 * torch.ones(2, 2), torch.ones(2, 2)])
    found = in_core_space(vectors_of(deltas)).deltas["w"]
    assert sorted(found.abs().flatten().tolist()) == pytest.approx([2.0, 6.0])
    merged = fusion.core_space(vectors_of(deltas), of="simple_average")["w"]
    torch.testing.assert_close(merged, 2 * torch.ones(2, 2))


@pytest.mark.parametrize("shape", [(2, 20, 12), (2, 12, 20), (4, 13, 13)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_a_textbook(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    deltas = lora(*shape).to(dtype)
    wide = deltas.double()
    left, values, right = torch.linalg.svd(torch.cat(list(wide), 1), full_matrices=False)
    rank = int((values > 1e-5 * values[0]).sum())
    assert rank == min(3 * shape[0], shape[1])
    inside = (values[:, None] * right)[:rank].reshape(rank, 3, shape[2]).transpose(0, 1)
    wanted = left[:, :rank] @ ties(inside.reshape(3, -1), 0.3).view(rank, shape[2])
    merged = fusion.knots(vectors_of(deltas), of={"ties": {"density": 0.3}})["w"]
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(merged, wanted.to(dtype), **close)

    other = torch.linalg.svd(torch.cat(list(wide)), full_matrices=False).Vh
    other = other[: min(3 * shape[0], shape[2])]
    core = left[:, :rank].T @ wide @ other.T
    wanted = ties(core.reshape(3, -1), 0.3).view(core.shape[1:])
    merged = fusion.core_space(vectors_of(deltas), of={"ties": {"density": 0.3}})["w"]
    torch.testing.assert_close(merged, (left[:, :rank] @ wanted @ other).to(dtype), **close)


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("of", ["simple_average", "task_arithmetic", "tsv_m", "iso_c"])
def test_methods_that_do_not_depend_on_the_basis_give_what_they_give_alone(
    method: str, of: str
) -> None:
    # Full rank on both sides, so that shares of directions are the same.
    vectors = vectors_of(drawn(3, 12, 15, dtype=torch.float32))
    alone, inside = METHODS[of].merge(vectors), METHODS[method].merge(vectors, of=of)
    torch.testing.assert_close(inside["w"], alone["w"], rtol=1e-4, atol=1e-4)


def test_directions_are_those_of_all_tasks_and_zero_ones_are_left_out() -> None:
    deltas = lora(2, 20, 11)
    found = directions(deltas)
    assert found.shape == (20, 6)
    torch.testing.assert_close(found.T @ found, torch.eye(6, dtype=found.dtype))
    torch.testing.assert_close(found @ (found.T @ deltas), deltas)
    assert directions(torch.zeros(3, 4, 5)).shape == (4, 0)


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e8])
def test_the_scale_of_weights_does_not_matter(method: str, size: float) -> None:
    deltas = lora(2, 10, 12)
    merged = METHODS[method].merge(vectors_of(size * deltas), of="ties")["w"]
    torch.testing.assert_close(
        merged / size, METHODS[method].merge(vectors_of(deltas), of="ties")["w"]
    )


@pytest.mark.parametrize("method", NAMES)
def test_factors_and_products_give_the_same_bits(method: str) -> None:
    pairs = [(drawn(2, 9, seed=at), drawn(7, 2, seed=10 + at)) for at in range(3)]
    held = LowRankTaskVectors({"w": LowRank.of(pairs)})
    base = {"w": drawn(7, 9, seed=5)}
    low = TaskVectors(TASKS, base, held)
    dense = TaskVectors(TASKS, base, {"w": held["w"]})
    merge = METHODS[method].merge
    assert torch.equal(merge(low, of="ties")["w"], merge(dense, of="ties")["w"])


@pytest.mark.parametrize("form", [in_output_directions, in_core_space])
def test_the_form_of_a_survey_is_what_is_merged(form: Any) -> None:
    found = form(toy())
    for name, delta in found.deltas.items():
        assert delta.shape == (3, *found.base[name].shape), name
        assert found.deltas.outline(name).dtype == delta.dtype
    assert not found.base["block.1.weight"].any()
    assert torch.equal(found.deltas["block.0.weight"], toy().deltas["block.0.weight"])
