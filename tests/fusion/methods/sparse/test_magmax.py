"""MagMax by hand and against an argmax."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from fusion.methods.sparse.magmax import magmax
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import vectors_of
from tests.fusion.laws import SCHEMAS, TASKS, assert_same_bits, copied, state_dict, toy

A = [0.10, -0.50, 0.30, 0.02, -0.40, 0.05, 0.20, -0.01, 0.60, -0.03]
B = [-0.20, -0.10, 0.35, -0.45, 0.40, 0.0, 0.15, 0.25, -0.05, 0.07]


def test_fixture_by_hand() -> None:
    wanted = [-0.2, -0.5, 0.35, -0.45, 0.4, 0.05, 0.2, 0.25, 0.6, 0.07]
    assert magmax(vectors_of(A, B), scale=1.0)["w"].tolist() == pytest.approx(wanted)
    half = [value / 2 for value in wanted]
    assert magmax(vectors_of(A, B))["w"].tolist() == pytest.approx(half)


def test_equal_magnitudes() -> None:
    rows = [-0.4, 0.5, -0.1], [0.4, -0.5, -0.1]
    for order in (rows, rows[::-1]):
        positive = magmax(vectors_of(*order), scale=1.0)["w"].tolist()
        assert positive == pytest.approx([0.4, 0.5, -0.1])
        later = magmax(vectors_of(*order), scale=1.0, compat="fusionbench")["w"].tolist()
        assert later == pytest.approx(order[1])


def test_the_order_of_tasks_changes_no_bit() -> None:
    rows = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    results = [magmax(vectors_of(*p)) for p in permutations(rows.tolist())]
    for other in results[1:]:
        assert_same_bits(other, results[0])


def textbook(deltas: Tensor) -> Tensor:
    at = deltas.abs().flip(0).argmax(0)  # of equal ones the first of the flipped: the last
    return deltas.flip(0).gather(0, at[None])[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_an_argmax(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    deltas = torch.randn(5, 3, 40, generator=generator, dtype=dtype)
    base = torch.randn(3, 40, generator=generator, dtype=dtype)
    vectors = TaskVectors(tuple("abcde"), {"w": base}, {"w": deltas})
    wanted = base.double() + 0.7 * textbook(deltas).double()
    for compat in ("paper", "fusionbench"):
        merged = magmax(vectors, scale=0.7, compat=compat)["w"]  # type: ignore[arg-type]
        torch.testing.assert_close(merged, wanted.to(dtype))
    ties = deltas.round(decimals=0)
    vectors = TaskVectors(tuple("abcde"), {"w": torch.zeros(3, 40, dtype=dtype)}, {"w": ties})
    merged = magmax(vectors, scale=1.0, compat="fusionbench")["w"]
    assert torch.equal(merged, textbook(ties))


def test_scale_zero_and_one_task() -> None:
    for schema in SCHEMAS:
        vectors = toy(schema)
        assert_same_bits(magmax(vectors, scale=0.0), vectors.base)
        alone = toy(schema, TASKS[:1])
        for name, tensor in magmax(alone, scale=1.0).items():
            if name in alone.deltas:
                wide = alone.base[name].double() + alone.deltas[name][0].double()
                torch.testing.assert_close(tensor, wide.to(tensor.dtype))


def test_a_zero_task_vector_changes_nothing() -> None:
    base = state_dict("mixed", 0)
    experts = {task: state_dict("mixed", 1 + at) for at, task in enumerate(TASKS[:2])}
    two = TaskVectors.from_state_dicts(base, experts)
    three = TaskVectors.from_state_dicts(base, {**experts, "same": copied(base)})
    assert_same_bits(magmax(three), magmax(two))
