"""Averages, against the formulas over whole experts in float64."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.static.average import simple_average, weighted_average, wise_ft
from fusion.task_vectors.task_vectors import TaskVectors


def models(count: int, dtype: torch.dtype = torch.float64) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"w": (4, 3), "b": (3,), "s": ()}
    return [
        {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}
        for _ in range(count)
    ]


BASE, A, B, C = models(4)
EXPERTS = {"a": A, "b": B, "c": C}
VECTORS = TaskVectors.from_state_dicts(BASE, EXPERTS)


def test_simple_average_is_the_mean_of_the_experts() -> None:
    merged = simple_average(VECTORS)
    for key in BASE:
        torch.testing.assert_close(merged[key], (A[key] + B[key] + C[key]) / 3)


def test_simple_average_of_copies_is_the_copy() -> None:
    base, expert = models(2, torch.float16)
    vectors = TaskVectors.from_state_dicts(base, {"a": expert, "b": expert})
    merged = simple_average(vectors)
    for key in base:
        assert torch.equal(merged[key], expert[key])


@pytest.mark.parametrize(
    "weights",
    [
        [1, 2, 5],
        {"c": 5, "a": 1, "b": 2},
        torch.tensor([1.0, 2.0, 5.0]),
        torch.tensor([[1.0] * 3, [2.0] * 3, [5.0] * 3]),
        [torch.tensor(1.0), torch.tensor([2.0] * 3), {"*": 5}],
    ],
    ids=["list", "mapping", "tensor", "tensor by group", "each its own"],
)
def test_weights_in_every_form(weights: Any) -> None:
    normalised = weighted_average(VECTORS, weights=weights)
    plain = weighted_average(VECTORS, weights=weights, normalize=False)
    for key in BASE:
        wanted = A[key] + 2 * B[key] + 5 * C[key]
        torch.testing.assert_close(normalised[key], wanted / 8)
        torch.testing.assert_close(plain[key], wanted)


def test_weights_by_tensor() -> None:
    # An exact name wins over a pattern, the longest pattern over others, in any order.
    weights = {"a": {"*": 1, "b": 3}, "b": {"*": 4, "[wb]": 2, "w": 2}, "c": 0}
    merged = weighted_average(VECTORS, weights=weights)
    torch.testing.assert_close(merged["w"], (A["w"] + 2 * B["w"]) / 3)
    torch.testing.assert_close(merged["b"], (3 * A["b"] + 2 * B["b"]) / 5)
    torch.testing.assert_close(merged["s"], (A["s"] + 4 * B["s"]) / 5)


def test_a_list_by_group_means_the_same_tensors_on_a_shard() -> None:
    weights = [[1, 2, 3], [3, 2, 1], [1, 1, 1]]
    whole = weighted_average(VECTORS, weights=weights)
    shard = weighted_average(VECTORS.restrict(["s", "b"]), weights=weights)
    assert torch.equal(shard["b"], whole["b"])
    assert torch.equal(shard["s"], whole["s"])
    with pytest.raises(InputError, match="2 weights given; one for each of 3 floating-point"):
        weighted_average(VECTORS.restrict(["s", "b"]), weights=[[1, 2], [3, 2], [1, 1]])


def test_weights_by_group_follow_the_float_tensors_of_the_base() -> None:
    base = {"ids": torch.zeros(1, dtype=torch.int64), "w": torch.zeros(1), "b": torch.zeros(1)}
    expert = {**base, "w": torch.ones(1), "b": torch.ones(1)}
    vectors = TaskVectors.from_state_dicts(base, {"a": expert})
    merged = weighted_average(vectors, weights=[[2, 3]], normalize=False)
    assert (merged["w"].item(), merged["b"].item()) == (2.0, 3.0)


def test_negative_weights_are_allowed() -> None:
    merged = weighted_average(VECTORS, weights=[2, -1, 0])
    torch.testing.assert_close(merged["w"], 2 * A["w"] - B["w"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "weights: 2 given; one for each of 3 tasks needed (a, b, c)"),
        ([1, -1, 0], "weights: those of tensor 'w' sum to zero"),
        ({"a": 1, "b": 1, "d": 1}, "weights: unknown task 'd'"),
        ({"a": 1, "b": 1}, "weights: task 'c': no weight given"),
        ([1, 2, float("nan")], "weights: task 'c': nan; a finite number needed"),
        ([1, 2, "3"], "weights: task 'c': '3'; a finite number needed"),
        ([1, 2, True], "weights: task 'c': True; a finite number needed"),
        ([[1, 2], 1, 1], "task 'a': 2 weights given; one for each of 3 floating-point tensors"),
        ([{"w": 1}, 1, 1], "weights: task 'a': tensor 'b': no weight given (add '*' for the rest)"),
        ([{"x*": 1, "*": 1}, 1, 1], "task 'a': 'x*': no floating-point tensor has such a name"),
        ([{"w": None, "*": 1}, 1, 1], "task 'a': 'w': None; a finite number needed"),
        (torch.ones(2), "weights: 2 given; one for each of 3 tasks needed"),
    ],
)
def test_wrong_weights_are_one_clear_line(weights: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        weighted_average(VECTORS, weights=weights)
    assert "\n" not in str(error.value)


def test_zero_sum_is_fine_without_normalisation() -> None:
    merged = weighted_average(VECTORS, weights=[1, -1, 0], normalize=False)
    torch.testing.assert_close(merged["w"], A["w"] - B["w"])


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_wise_ft_interpolates(alpha: float) -> None:
    merged = wise_ft(VECTORS, alpha=alpha, expert="b")
    for key in BASE:
        torch.testing.assert_close(merged[key], (1 - alpha) * BASE[key] + alpha * B[key])


def test_wise_ft_at_zero_is_the_base_bit_for_bit() -> None:
    merged = wise_ft(VECTORS, alpha=0.0, expert="b")
    assert all(torch.equal(merged[key], BASE[key]) for key in BASE)


def test_wise_ft_takes_the_only_expert() -> None:
    vectors = TaskVectors.from_state_dicts(BASE, {"b": B})
    torch.testing.assert_close(wise_ft(vectors)["w"], (BASE["w"] + B["w"]) / 2)


def test_wise_ft_asks_which_of_several() -> None:
    with pytest.raises(InputError, match="expert: not given; one of a, b, c needed"):
        wise_ft(VECTORS)
    with pytest.raises(InputError, match="unknown expert 'd'"):
        wise_ft(VECTORS, expert="d")


def test_wise_ft_by_block_is_a_weighted_average_by_tensor():
    from tests.fusion.laws import assert_same_bits, toy

    vectors = toy(tasks=("dtd",))
    blocks = {"block.*": 0.25, "block.1.weight": 1.0}
    found = wise_ft(vectors, alpha=0.5, blocks=blocks)
    for name, base in vectors.base.items():
        share = 1.0 if name == "block.1.weight" else 0.25 if name.startswith("block") else 0.5
        wanted = base.double() + share * vectors.deltas[name][0].double()
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-6, atol=1e-6)
    assert_same_bits(
        wise_ft(vectors, blocks={"*": 0.3}),
        wise_ft(vectors, alpha=0.3),
    )
    for wrong, said in (
        ({"nothing.*": 0.5}, "no floating-point tensor has such a name"),
        ({"block.*": 1.5}, "0 to 1 allowed"),
    ):
        with pytest.raises(InputError, match=said):
            wise_ft(vectors, blocks=wrong)
