"""Fisher merging: by hand, against the formula in float64, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.methods.statistics.fisher import Squares, fisher
from fusion.registry import METHODS
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.laws import TASKS, toy, toy_statistics


def pair(a: list[float], b: list[float]) -> TaskVectors:
    experts = {"a": {"w": torch.tensor(a).float()}, "b": {"w": torch.tensor(b).float()}}
    return TaskVectors.from_state_dicts({"w": torch.ones(len(a))}, experts)


def test_by_hand() -> None:
    found = {"w": torch.tensor([[1.0, 0.0, 2.0], [3.0, 4.0, 0.0]])}
    merged = fisher(pair([1, 2, 3], [5, 6, 7]), statistics=found, normalize=False, floor=0.0)
    assert merged["w"].tolist() == [4.0, 6.0, 3.0]


def test_norms_make_experts_count_alike() -> None:
    found = {"w": torch.tensor([[1.0, 0.0], [100.0, 0.0]])}
    merged = fisher(pair([2, 2], [4, 4]), statistics=found, floor=0.0)
    assert merged["w"].tolist() == [3.0, 3.0]  # where no expert has a weight: the mean


@pytest.mark.parametrize("normalize", [True, False])
def test_against_the_formula_in_float64(normalize: bool) -> None:
    vectors, floor = toy(), 1e-3
    found = toy_statistics(vectors.deltas, TASKS, "fisher")
    merged = METHODS["fisher"].merge(
        vectors, MergeInputs(statistics=found), normalize=normalize, floor=floor
    )
    norms = torch.stack([f.double().reshape(3, -1).square().sum(1) for f in found.values()])
    shares = 1 / (norms.sum(0).sqrt() + floor) if normalize else torch.ones(3).double()
    for name, deltas in vectors.deltas.items():
        base = vectors.base[name].double()
        experts = base + deltas.double()
        weights = (found[name].double() + floor) * shares.view(3, *[1] * base.ndim)
        wanted = (weights * experts).sum(0) / weights.sum(0)
        torch.testing.assert_close(merged[name].double(), wanted, rtol=1e-5, atol=1e-6)


def test_statistics_of_other_weights_are_refused() -> None:
    vectors = pair([1, 2], [3, 4])
    for found, reason in (
        ({}, "tensor 'w': none"),
        ({"w": torch.ones(2, 3)}, r"tensor 'w': shape \[2, 3\]; \[2, 2\] needed: they are of"),
        ({"w": torch.full((2, 2), float("nan"))}, "tensor 'w': NaN or Inf"),
    ):
        with pytest.raises(InputError, match=f"fisher: statistics: {reason}"):
            fisher(vectors, statistics=found)
    with pytest.raises(InputError, match="fisher: statistics: none given; fisher needed"):
        METHODS["fisher"].merge(vectors)


def test_squares_are_summed_over_passes_and_gradients_let_go() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    squares = Squares({"w": weight})
    for factor in (1.0, 3.0):
        (factor * weight).sum().backward()  # type: ignore[no-untyped-call]
        squares.add(2)
    assert weight.grad is None
    assert squares.means()["w"].tolist() == [2.5, 2.5]  # (1² + 3²) / 4 images
