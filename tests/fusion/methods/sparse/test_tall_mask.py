"""TALL masks and consensus: by hand, against the equations in float64, at the ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion.kinds import MergeInputs
from fusion.methods.sparse.tall_mask import consensus, tall_mask
from fusion.methods.static.task_arithmetic import task_arithmetic
from fusion.registry import METHODS
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.laws import TASKS, assert_same_bits, toy

ROWS = {"a": [3.0, -1.0, 2.0, 0.0], "b": [1.0, 3.0, 2.0, 0.5], "c": [0.0, 0.5, -1.0, 0.0]}


def by_hand() -> TaskVectors:
    experts = {task: {"w": torch.tensor(row)} for task, row in ROWS.items()}
    return TaskVectors.from_state_dicts({"w": torch.zeros(4)}, experts)


def test_masks_by_hand() -> None:
    # Στ = (4, 2.5, 3, 0.5); κ = 1: a needs |a| >= |Στ − a| = (1, 3.5, 1, 0.5)
    assert tall_mask(by_hand(), task="a", threshold=1.0)["w"].tolist() == [4.0, 0.0, 3.0, 0.0]
    assert tall_mask(by_hand(), task="b", threshold=1.0)["w"].tolist() == [0.0, 2.5, 3.0, 0.5]


def test_consensus_by_hand() -> None:
    # masks at κ = 1: a (1, 0, 1, 0), b (0, 1, 1, 1), c (0, 0, 0, 0): |c| < |Στ − c|
    merged = {k: consensus(by_hand(), threshold=1.0, least=k, scale=1.0)["w"] for k in (1, 2, 3)}
    assert merged[1].tolist() == [4.0, 2.5, 3.0, 0.5]
    assert merged[2].tolist() == [0.0, 0.0, 3.0, 0.0]
    assert merged[3].tolist() == [0.0, 0.0, 0.0, 0.0]


COMPATS = {"paper": torch.ge, "released": torch.gt}


@pytest.mark.parametrize("compat", COMPATS)
def test_entries_of_equal_sides(compat: str) -> None:
    """At κ = 1 of two tasks with equal entries, both sides of the comparison are equal."""
    experts = {task: {"w": torch.tensor([1.0, 2.0, 0.0], dtype=torch.bfloat16)} for task in "ab"}
    experts["b"]["w"][1] = -3.0
    vectors = TaskVectors.from_state_dicts({"w": torch.zeros(3).bfloat16()}, experts)
    kept = 2.0 if compat == "paper" else 0.0
    options: Any = {"threshold": 1.0, "compat": compat}
    assert tall_mask(vectors, task="b", **options)["w"].tolist() == [kept, -1.0, 0.0]
    assert consensus(vectors, scale=1.0, **options)["w"].tolist() == [kept, 0.0, 0.0]


@pytest.mark.parametrize("compat", COMPATS)
def test_against_the_equations_in_float64(compat: str) -> None:
    vectors, kappa, keeps = toy(), 0.5, COMPATS[compat]
    one = METHODS["tall_mask"].merge(
        vectors, MergeInputs(task="svhn"), threshold=kappa, compat=compat
    )
    both = METHODS["consensus"].merge(vectors, threshold=kappa, scale=0.7, compat=compat)
    for name, stack in vectors.deltas.items():
        deltas, base = stack.double(), vectors.base[name].double()
        total = deltas.sum(0)
        masks = keeps(deltas.abs(), kappa * (total - deltas).abs())
        at = TASKS.index("svhn")
        torch.testing.assert_close(one[name].double(), base + masks[at] * total)
        wanted = base + 0.7 * (masks.sum(0) >= 2) * total
        torch.testing.assert_close(both[name].double(), wanted, rtol=1e-6, atol=1e-6)


def test_a_threshold_of_zero_is_task_arithmetic() -> None:
    found = consensus(toy(), threshold=0.0, least=3, scale=0.3)
    wanted = task_arithmetic(toy(), scale=0.3)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


def test_more_than_all_tasks_is_the_base() -> None:
    assert_same_bits(consensus(toy(), least=4), toy().base)
