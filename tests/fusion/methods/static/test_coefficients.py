"""Weights as a user writes them."""

from __future__ import annotations

import torch

from fusion.methods.static.coefficients import named_weights, tensor_weights
from tests.fusion.laws import TASKS, toy


def test_none_is_one_each() -> None:
    assert tensor_weights(toy(), None) == {name: [1.0] * 3 for name in toy().groups}


def test_a_mapping_is_read_in_task_order() -> None:
    table = tensor_weights(toy(), {task: index for index, task in enumerate(TASKS)})
    assert set(map(tuple, table.values())) == {(0.0, 1.0, 2.0)}


def test_a_tensor_by_group() -> None:
    weights = torch.arange(15.0).view(3, 5)
    table = tensor_weights(toy(), weights)
    assert [table[name] for name in toy().groups] == weights.T.tolist()


def test_a_shard_takes_its_own_tensors() -> None:
    weights = {task: {"block.*": 2.0, "*": 1.0} for task in TASKS}
    shard = toy().restrict(["logit_scale"])  # no tensor named block.* here, but in the model
    assert tensor_weights(shard, weights) == {"logit_scale": [1.0] * 3}


def test_names_win_over_patterns_and_earlier_patterns_over_later() -> None:
    found = named_weights("w", {"a*": 1, "*": 2, "ab": 3}, ["a", "ab", "abc", "b"])
    assert found == {"a": 1.0, "ab": 3.0, "abc": 1.0, "b": 2.0}
