"""Task arithmetic, against the formula and its special cases."""

from __future__ import annotations

import pytest
import torch

from fusion.methods.static.average import simple_average, wise_ft
from fusion.methods.static.task_arithmetic import task_arithmetic
from tests.fusion.laws import TASKS, assert_same_bits, state_dict, toy


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.3, 2.0])
def test_formula(scale: float) -> None:
    base = state_dict("float32", 0)
    experts = [state_dict("float32", 1 + index) for index in range(len(TASKS))]
    merged = task_arithmetic(toy(), scale=scale)
    for key, origin in base.items():
        total = sum(expert[key].double() - origin.double() for expert in experts)
        wanted = (origin.double() + scale * total).float()
        torch.testing.assert_close(merged[key], wanted, rtol=1e-5, atol=1e-6)


def test_scale_zero_is_the_base_bit_for_bit() -> None:
    assert_same_bits(task_arithmetic(toy("mixed"), scale=0.0), toy("mixed").base)


def test_one_task_is_wise_ft() -> None:
    vectors = toy(tasks=TASKS[:1])
    assert_same_bits(task_arithmetic(vectors, scale=0.4), wise_ft(vectors, alpha=0.4))


def test_scale_one_over_t_is_the_average() -> None:
    assert_same_bits(task_arithmetic(toy(), scale=1 / 3), simple_average(toy()))
