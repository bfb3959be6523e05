"""tsv_m by hand, against full decompositions, and of tasks without directions of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.methods.spectral.tsv import tsv_m
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import drawn_as_double as drawn
from tests.fusion.laws import TASKS, assert_same_bits, copied, state_dict, toy
from tests.fusion.methods.spectral.matrices import vectors_of


def textbook(deltas: Tensor) -> Tensor:
    """As FusionBench has it: full decompositions, blocks, polar factors by decompositions."""
    count, rank = len(deltas), min(deltas.shape[1:])
    share = int(rank * (1 / count))
    left = deltas.new_zeros(deltas.shape[1], rank)
    right = deltas.new_zeros(rank, deltas.shape[2])
    values = deltas.new_zeros(rank)
    for at, delta in enumerate(deltas):
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        block = slice(at * share, (at + 1) * share)
        left[:, block], values[block], right[block] = u[:, :share], s[:share], v[:share]
    polars = []
    for side in (left, right):
        u, _, v = torch.linalg.svd(side, full_matrices=False)
        polars.append(u @ v)
    merged: Tensor = polars[0] @ torch.diag(values) @ polars[1]
    return merged


def test_by_hand() -> None:
    # Each task keeps its strongest direction; they are orthogonal already.
    merged = tsv_m(vectors_of(torch.stack([torch.diag(torch.tensor(d)) for d in DIAGONALS])))["w"]
    torch.testing.assert_close(merged, torch.diag(torch.tensor([5.0, 0.0, -4.0, 3.0])))


DIAGONALS = [5.0, 1.0, 1.0, 0.0], [0.0, 1.0, -4.0, 2.0], [1.0, 0.0, 0.0, 3.0]


def test_two_directions_are_turned_apart_by_hand() -> None:
    # One-row directions e1 and (e1+e2)/√2 in the inputs, the same orthogonal ones in the outputs:
    # polar([v1 v2]) turns them apart symmetrically, to -22.5 and 67.5 degrees.
    turned = torch.tensor([1.0, 1.0]).double() / 2**0.5
    first = torch.outer(torch.tensor([1.0, 0.0]).double(), torch.tensor([1.0, 0.0]).double())
    second = torch.outer(torch.tensor([0.0, 1.0]).double(), turned)
    merged = tsv_m(vectors_of(torch.stack([first, 2 * second])))["w"]
    angle = torch.tensor(torch.pi / 8).double()
    wanted = torch.stack(
        [
            torch.stack([angle.cos(), -angle.sin()]),
            2 * torch.stack([angle.sin(), angle.cos()]),
        ]
    )
    torch.testing.assert_close(merged, wanted)


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 20, 9), (4, 9, 20), (2, 5, 5), (5, 7, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_full_decompositions(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    deltas = drawn(*shape, dtype=dtype)
    wanted = textbook(deltas.double())
    merged = tsv_m(vectors_of(deltas))["w"]
    close: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(merged, wanted.to(dtype), **close)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 160, 160), (6, 400, 160), (6, 160, 400)])
def test_large_ones_are_nearer_to_float64_than_a_float32_textbook(shape: Any) -> None:
    deltas = 0.01 * drawn(*shape, dtype=torch.float32)
    wanted = textbook(deltas.double())
    off = float((tsv_m(vectors_of(deltas))["w"] - wanted).norm() / wanted.norm())
    assert off < min(1e-5, float((textbook(deltas) - wanted).norm() / wanted.norm()))


def test_large_low_rank_tasks() -> None:
    # 20 directions of each of eight: one task has three, and one none. 6 · 20 + 3 are left.
    deltas = drawn(8, 170, 160, dtype=torch.float32)
    deltas[5] = drawn(170, 3, dtype=torch.float32) @ drawn(3, 160, dtype=torch.float32, seed=1)
    deltas[7] = 0
    merged = tsv_m(vectors_of(deltas))["w"].double()
    assert int(torch.linalg.matrix_rank(merged, rtol=1e-4)) == 123


def test_one_task_is_itself() -> None:
    for dtype in (torch.float32, torch.float64):
        delta = drawn(1, 11, 6, dtype=dtype)
        torch.testing.assert_close(tsv_m(vectors_of(delta))["w"], delta[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            tsv_m(vectors_of(delta), scale=0.5)["w"], delta[0] / 2, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_and_low_rank_tasks_add_nothing_of_their_own(dtype: torch.dtype) -> None:
    # A third of rank 9 is 3 directions; the zero task has none, the second two.
    strong = drawn(9, 9, dtype=dtype)
    weak = drawn(9, 2, dtype=dtype, seed=1) @ drawn(2, 9, dtype=dtype, seed=2)
    deltas = torch.stack([strong, weak, torch.zeros_like(strong)])
    merged = tsv_m(vectors_of(deltas))["w"].double()
    assert int(torch.linalg.matrix_rank(merged, rtol=1e-4)) == 5
    flipped = tsv_m(vectors_of(deltas.flip(0)))["w"].double()
    torch.testing.assert_close(merged, flipped, rtol=1e-5, atol=1e-5)


def test_equal_experts_share_their_directions() -> None:
    # [u u] has one direction, of which each copy takes 1/√2 on both sides: 2 · σ/2.
    delta = drawn(8, 8)
    merged = tsv_m(vectors_of(torch.stack([delta, delta])))["w"]
    u, s, v = torch.linalg.svd(delta)
    torch.testing.assert_close(merged, u[:, :4] * s[:4] @ v[:4])


@pytest.mark.parametrize("compat", ["paper", "fusionbench"])
def test_more_tasks_than_directions(compat: Any) -> None:
    deltas = drawn(4, 3, 50)
    merged = tsv_m(vectors_of(deltas), compat=compat)["w"]
    wanted = deltas.mean(0) if compat == "paper" else torch.zeros(3, 50).double()
    torch.testing.assert_close(merged, wanted)
    single = drawn(4, 1, 50)
    merged = tsv_m(vectors_of(single), compat=compat)["w"]
    wanted = single.mean(0) if compat == "paper" else torch.zeros(1, 50).double()
    torch.testing.assert_close(merged, wanted)


def test_vectors_are_averaged_and_scaled() -> None:
    vectors = toy("mixed")
    merged = tsv_m(vectors, scale=0.5)
    for name in ("block.0.bias", "block.0.weight", "logit_scale"):
        wanted = vectors.base[name].double() + 0.5 * vectors.deltas[name].double().mean(0)
        torch.testing.assert_close(merged[name], wanted.to(merged[name].dtype))


def test_rotations_among_equal_values_do_not_show() -> None:
    # All singular values equal: any basis is one of singular vectors.
    turn = torch.linalg.qr(drawn(6, 6)).Q
    deltas = torch.stack([3 * turn])
    torch.testing.assert_close(tsv_m(vectors_of(deltas))["w"], 3 * turn)


def test_an_expert_that_is_the_base() -> None:
    base = state_dict("float32", 0)
    experts = {"a": state_dict("float32", 1), "b": copied(base)}
    merged = tsv_m(TaskVectors.from_state_dicts(base, experts))
    assert all(bool(tensor.isfinite().all()) for tensor in merged.values())
    alone = {task: copied(base) for task in TASKS}
    assert_same_bits(tsv_m(TaskVectors.from_state_dicts(base, alone)), base)


@pytest.mark.parametrize("weights", [[2.0, 0.5, -1.0], {"t0": 2.0, "t1": 0.5, "t2": -1.0}])
def test_weights_come_before_the_decomposition(weights: Any) -> None:
    deltas = drawn(3, 7, 5)
    factors = torch.tensor([2.0, 0.5, -1.0], dtype=deltas.dtype)
    wanted = textbook(deltas * factors[:, None, None])
    vectors = vectors_of(deltas)
    torch.testing.assert_close(tsv_m(vectors, weights=weights)["w"], wanted)
    averaged = TaskVectors(vectors.tasks, {"b": torch.zeros(2)}, {"b": torch.ones(3, 2)})
    torch.testing.assert_close(tsv_m(averaged, weights=weights)["b"], torch.full((2,), 0.5))
