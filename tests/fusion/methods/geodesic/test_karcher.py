"""The Karcher mean by hand, against steps on the sphere itself, and where there is no direction."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.geodesic.karcher import karcher
from fusion.methods.geodesic.slerp import slerp
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import vectors_of
from tests.fusion.laws import SCHEMAS, assert_same_bits, state_dict, toy
from tests.fusion.methods.geodesic.arcs import models, vectors_of_models


def test_by_hand() -> None:
    right = karcher(vectors_of([2.0, 0.0], [0.0, 4.0]))["w"].tolist()
    assert right == pytest.approx([3 / math.sqrt(2)] * 2)
    # 30 degrees from the first: a quarter of the way on an arc of 120 degrees, length 1.25
    ends = [1.0, 0.0], [-1.0, math.sqrt(3)]
    third = karcher(vectors_of(*ends), weights=[3, 1], tolerance=1e-9, iterations=60)["w"].tolist()
    assert third == pytest.approx([1.25 * math.cos(math.pi / 6), 1.25 / 2], abs=1e-6)
    # the corner of three right angles
    axes = karcher(vectors_of([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]))["w"].tolist()
    assert axes == pytest.approx([3**-0.5] * 3)


def test_two_models_meet_in_the_middle_of_their_arc() -> None:
    base, deltas = models(2, 6, 5)
    lengths = (base + deltas).flatten(1).norm(dim=1)
    deltas[1] = (base + deltas[1]) * (lengths[0] / lengths[1]) - base  # one length, one circle
    vectors = vectors_of_models(base, deltas, torch.float64)
    torch.testing.assert_close(karcher(vectors)["w"], slerp(vectors, threshold=1.0)["w"])


def textbook(points: Tensor, weights: Tensor) -> Tensor:
    """Σ w‖p‖ times the Karcher mean of the directions of points [T, n], by steps until it rests."""
    lengths = points.norm(dim=1)
    units = points / lengths[:, None]
    mean = (weights @ units) / (weights @ units).norm()
    for _ in range(300):
        dots = (units @ mean).clamp(-1, 1)
        angles = dots.arccos()
        logs = (units - dots[:, None] * mean) * (angles / angles.sin())[:, None]
        step = weights @ logs
        size = step.norm()
        if size < 1e-13:
            break
        mean = size.cos() * mean + size.sin() * step / size
    return (weights @ lengths) * mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("of", ["weights", "task_vectors"])
@pytest.mark.parametrize("spread", [1.0, 0.05])
def test_against_steps_on_the_sphere(of: Any, dtype: torch.dtype, spread: float) -> None:
    base, deltas = models(5, 8, 3, spread=spread)
    share = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
    base, deltas = base.to(dtype).double(), deltas.to(dtype).double()
    points = deltas + base if of == "weights" else deltas
    wanted = textbook(points.flatten(1), share).view_as(base)
    found = karcher(
        vectors_of_models(base, deltas, dtype), weights=(7 * share).tolist(), of=of,
        iterations=300, tolerance=1e-7,
    )["w"]  # fmt: skip
    wanted = wanted if of == "weights" else base + wanted
    error = (found.double() - wanted).norm() / (wanted - base).norm()
    assert float(error) < (2e-5 if dtype == torch.float32 else 1e-6)  # within the tolerance


def test_ten_steps_are_enough_for_experts_near_their_base() -> None:
    base, deltas = models(8, 40, 30, spread=0.01)
    vectors = vectors_of_models(base, deltas, torch.float64)
    ten = karcher(vectors)["w"] - base
    many = karcher(vectors, iterations=200, tolerance=1e-9)["w"] - base
    assert float((ten - many).norm() / many.norm()) < 1e-5


def test_equal_models_and_zero_steps() -> None:
    for schema in SCHEMAS:
        base, expert = state_dict(schema, 0), state_dict(schema, 1)
        same = TaskVectors.from_state_dicts(base, {"a": expert, "b": expert, "c": expert})
        alone = TaskVectors.from_state_dicts(base, {"a": expert})
        for name, tensor in karcher(same).items():
            wanted = karcher(alone)[name]
            torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-6)
    start = karcher(vectors_of([1.0, 0.0], [0.0, 1.0], [0.0, 1.0]), iterations=0)["w"]
    torch.testing.assert_close(start, torch.tensor([1.0, 2.0]) / math.sqrt(5))


def test_no_direction() -> None:
    # a tensor of length 0 shortens the mean and does not turn it
    assert karcher(vectors_of([0.0, 0.0], [0.0, 4.0]))["w"].tolist() == pytest.approx([0, 2])
    assert karcher(vectors_of([0.0], [0.0]))["w"].tolist() == [0]
    for order in permutations([[1.0, 0.0], [-3.0, 0.0]]):  # opposite ones: the straight mean
        assert karcher(vectors_of(*order))["w"].tolist() == pytest.approx([-1, 0])
    nothing = karcher(toy("mixed"), of="task_vectors")["empty"]
    assert nothing.shape == (0, 3)


def test_the_order_of_models_does_not_matter() -> None:
    base, deltas = models(4, 9, 4)
    rows = [deltas[list(order)] for order in permutations(range(4))]
    first, *others = (karcher(vectors_of_models(base, row, torch.float64))["w"] for row in rows)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-9, atol=1e-12)


def test_weights_that_are_refused() -> None:
    vectors = vectors_of([1.0], [2.0])
    for weights, message in (
        ([1.0], "1 given; one for each of 2"),
        ([1.0, -0.5], "weights: task 't1': -0.5; >= 0 needed"),
        ([0.0, 0.0], "karcher: weights: they sum to zero"),
        ({"t0": 1.0, "other": 1.0}, "other"),
        ({"t0": 1.0}, "task 't1': no weight given"),
        ([1.0, float("nan")], "a finite number needed"),
    ):
        with pytest.raises(InputError, match=message):
            karcher(vectors, weights=weights)


def test_a_weight_of_zero_leaves_a_model_out() -> None:
    vectors = toy()
    two = karcher(vectors, weights={"mnist": 1, "svhn": 3, "dtd": 0})
    alone = toy(tasks=("mnist", "svhn"))
    for name, tensor in karcher(alone, weights=[1, 3]).items():
        torch.testing.assert_close(two[name], tensor)
    assert_same_bits(karcher(toy(), iterations=10), karcher(toy()))
