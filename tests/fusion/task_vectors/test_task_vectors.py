"""Task vectors: what is subtracted, what is refused, and shards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion.errors import InputError
from fusion.task_vectors.task_vectors import TaskVectors, check_finite
from tests.fusion.laws import TASKS, copied, state_dict, toy


def test_task_vectors_are_the_experts_less_the_base() -> None:
    vectors = toy("mixed")
    base = state_dict("mixed", 0)
    assert vectors.tasks == TASKS
    for key, deltas in vectors.deltas.items():
        assert deltas.shape == (len(TASKS), *base[key].shape)
        assert deltas.dtype == torch.promote_types(base[key].dtype, torch.float32)
        for index in range(len(TASKS)):
            expert = state_dict("mixed", 1 + index)[key]
            torch.testing.assert_close(deltas[index].double(), expert.double() - base[key].double())


def test_half_precision_is_subtracted_in_float32() -> None:
    base = {"w": torch.tensor([1.0], dtype=torch.bfloat16)}
    expert = {"w": torch.tensor([1.0 + 2**-10])}  # lost in bfloat16
    vectors = TaskVectors.from_state_dicts(base, {"a": expert})
    assert vectors.deltas["w"].item() == 2**-10


def test_parameters_that_need_gradients_are_read() -> None:
    base = {"w": torch.nn.Parameter(torch.zeros(2))}
    vectors = TaskVectors.from_state_dicts(base, {"a": {"w": torch.nn.Parameter(torch.ones(2))}})
    assert not vectors.deltas["w"].requires_grad
    assert not vectors.base["w"].requires_grad


def test_buffers_are_carried_by_the_base() -> None:
    assert set(toy("mixed").base) - set(toy("mixed").deltas) == {"ids", "mask"}


def changed(name: str, tensor: Any) -> dict[str, Any]:
    expert = state_dict("mixed", 1)
    if tensor is None:
        del expert[name]
    else:
        expert[name] = tensor
    return expert


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        (changed("ids", None), "expert 'svhn': tensor 'ids': missing"),
        (changed("extra", torch.ones(1)), "expert 'svhn': tensor 'extra': not in the base"),
        (changed("empty", torch.ones(1)), r"tensor 'empty': shape \[1\]; the base has \[0, 3\]"),
        (changed("logit_scale", torch.tensor(1)), "tensor 'logit_scale': dtype torch.int64"),
        (changed("logit_scale", torch.tensor(float("inf"))), "'logit_scale': 1 of 1 are NaN or"),
        (changed("ids", torch.zeros(4, dtype=torch.int64)), "'ids': a torch.int64 buffer that"),
        (changed("ids", torch.ones(4)), "'ids': a torch.int64 buffer that differs"),
    ],
)
def test_experts_that_do_not_fit_are_refused(expert: Any, message: str) -> None:
    good = state_dict("mixed", 2)
    with pytest.raises(InputError, match=message):
        TaskVectors.from_state_dicts(state_dict("mixed", 0), {"mnist": good, "svhn": expert})


def test_a_base_with_nan_is_refused() -> None:
    base = {"w": torch.tensor([1.0, float("nan")])}
    with pytest.raises(InputError, match="base: tensor 'w': 1 of 2 are NaN or Inf"):
        TaskVectors.from_state_dicts(base, {"a": {"w": torch.zeros(2)}})


def test_no_expert_is_refused() -> None:
    with pytest.raises(InputError, match="none given"):
        TaskVectors.from_state_dicts({"w": torch.zeros(1)}, {})


def test_finite_values_whose_sum_overflows_pass() -> None:
    check_finite(torch.full((4,), 3e38), "w", "base")
    check_finite(torch.full((4,), 1e300, dtype=torch.float64), "w", "base")


def test_shards_share_memory_and_keep_the_groups() -> None:
    vectors = toy()
    shard = vectors.restrict(["logit_scale", "embed.weight"])
    assert list(shard.base) == ["logit_scale", "embed.weight"]
    assert shard.deltas["embed.weight"] is vectors.deltas["embed.weight"]
    assert shard.groups == vectors.groups == tuple(vectors.deltas)
    with pytest.raises(InputError, match="tensor 'nothing': not in these task vectors"):
        vectors.restrict(["nothing"])


def test_later_changes_of_the_given_mappings_do_not_show() -> None:
    base = copied(state_dict("float32", 0))
    vectors = TaskVectors.from_state_dicts(base, {"a": state_dict("float32", 1)})
    base.clear()
    assert len(vectors.base) == len(vectors.deltas) == 5
