"""Arcee Fusion by hand, against its steps in float64, and equal importances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.sparse.arcee_fusion import arcee_fusion, importance
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import drawn
from tests.fusion.laws import SCHEMAS, TASKS, assert_same_bits, toy


def one(base: Tensor, delta: Tensor) -> TaskVectors:
    return TaskVectors(("a",), {"w": base}, {"w": delta[None]})


def test_importance_by_hand() -> None:
    # softmax(ln 3, 0) = (3/4, 1/4) beside (1/2, 1/2)
    delta = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = importance(torch.zeros(2, 2), delta)
    wanted = [[math.log(3) * divergence, 0.0], [0.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=1e-7)


def test_by_hand() -> None:
    # one row, so that importances are as |τ|: 1, 1, 2, 3, 9; median 2, quartiles 1 and 3
    delta = torch.tensor([[0.1, -0.1, 0.2, -0.3, 0.9]])
    vectors = one(torch.zeros(1, 5), delta)
    assert arcee_fusion(vectors)["w"].tolist()[0] == pytest.approx([0, 0, 0, 0, 0.9])
    low = arcee_fusion(vectors, spread=0.4)["w"].tolist()[0]
    assert low == pytest.approx([0, 0, 0, -0.3, 0.9])  # 3 of 2 + 0.4·2
    median = arcee_fusion(vectors, spread=0.0)["w"].tolist()[0]
    assert median == pytest.approx([0, 0, 0.2, -0.3, 0.9])


def reference(base: Tensor, expert: Tensor) -> Tensor:
    """The source's steps in float64, with all entries of the tensor."""
    p, q = expert.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
    scores = (expert - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ranked = scores.flatten().sort().values
    first, median, third = (ranked[int(c * (len(ranked) - 1))] for c in (0.25, 0.5, 0.75))
    return torch.where(scores >= median + 1.5 * (third - first), expert, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(30, 41), (6, 3, 4, 4), (50,), (300, 257)])
def test_against_float64(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    base, delta = drawn(*shape, dtype=dtype), 0.1 * drawn(*shape, seed=1, dtype=dtype)
    wanted = reference(base.double(), base.double() + delta.double())
    found = arcee_fusion(one(base, delta))["w"]
    off = (found.double() - wanted).abs() > 1e-5
    assert int(off.sum()) <= (1 if dtype == torch.float32 else 0)  # one may lie on the threshold
    share = float((wanted != base).double().mean())
    assert 0.01 < share < 0.3


def test_equal_importances_are_taken_together() -> None:
    delta = torch.tensor([[0.3, -0.3, 0.3]])
    same = arcee_fusion(one(torch.zeros(1, 3), delta))["w"]
    torch.testing.assert_close(same, delta)
    scalar = arcee_fusion(one(torch.tensor(2.0), torch.tensor(0.5)))["w"]
    assert float(scalar) == 2.5


def test_zero_task_vector_and_one_expert() -> None:
    for schema in SCHEMAS:
        vectors = toy(schema)
        zero = {name: torch.zeros_like(delta) for name, delta in vectors.deltas.items()}
        same = TaskVectors(vectors.tasks, vectors.base, zero)
        assert_same_bits(arcee_fusion(same, expert="svhn"), vectors.base)
        alone = toy(schema, TASKS[1:2])
        assert_same_bits(arcee_fusion(vectors, expert="svhn"), arcee_fusion(alone))


def test_which_expert_must_be_known() -> None:
    with pytest.raises(InputError, match="arcee_fusion: expert: not given; one of mnist"):
        arcee_fusion(toy())
