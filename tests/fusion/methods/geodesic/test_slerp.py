"""SLERP by hand, against its formula, and where there is no arc."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fusion.errors import InputError
from fusion.methods.geodesic.slerp import slerp
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.laws import TASKS, assert_same_bits, state_dict, toy


def pair(first: Any, second: Any, base: Any = None, dtype: torch.dtype = torch.float32) -> Any:
    ends = torch.tensor(first, dtype=dtype), torch.tensor(second, dtype=dtype)
    origin = torch.zeros_like(ends[0]) if base is None else torch.tensor(base, dtype=dtype)
    experts = {name: {"w": end} for name, end in zip("ab", ends, strict=True)}
    return TaskVectors.from_state_dicts({"w": origin}, experts)


def test_fixture() -> None:
    wanted = [0.409017, 1.645507, 2.881998]
    for base in (None, [0.5, -1.0, 4.0]):  # weights are joined: where the base is does not matter
        merged = slerp(pair([1.0, 2.0, 3.0], [-1.0, 0.5, 2.0], base), t=0.3)["w"]
        assert merged.tolist() == pytest.approx(wanted, abs=1e-5)


def test_lengths_are_kept_on_a_circle() -> None:
    for alpha in (0.0, 0.25, 0.5, 1.0):
        merged = slerp(pair([2.0, 0.0], [0.0, 2.0]), t=alpha)["w"].tolist()
        angle = alpha * math.pi / 2
        assert merged == pytest.approx([2 * math.cos(angle), 2 * math.sin(angle)], abs=1e-6)


def test_nearly_parallel_is_a_line() -> None:
    first, second = [1.0, 0.0], [1.0, 0.02]  # cos 0.9998
    assert slerp(pair(first, second), t=0.25)["w"].tolist() == pytest.approx([1, 0.005])
    bent = slerp(pair(first, second), t=0.25, threshold=1.0)["w"]
    assert bent.tolist() != [1, 0.005]
    torch.testing.assert_close(bent, torch.tensor([1.0, 0.005]), rtol=1e-4, atol=1e-6)
    against = slerp(pair([1.0, 0.0], [-1.0, 0.0]), t=0.25)["w"].tolist()
    assert against == pytest.approx([0.5, 0])
    same = slerp(pair([1.0, 3.0], [1.0, 3.0]), t=0.3, threshold=1.0)["w"].tolist()
    assert same == [1, 3]


def test_zero_vectors_have_no_direction() -> None:
    vectors = pair([0.0, 0.0], [2.0, 4.0])
    assert slerp(vectors, t=0.25)["w"].tolist() == [0.5, 1.0]
    quirk = slerp(vectors, t=0.25, compat="fusionbench")["w"].tolist()
    part = math.sin(math.pi / 8)
    assert quirk == pytest.approx([2 * part, 4 * part])
    assert slerp(pair([0.0], [0.0]), compat="fusionbench")["w"].tolist() == [0]


def test_fusionbench_does_not_normalise_short_vectors() -> None:
    vectors = pair([1e-9, 0.0], [1.0, 0.0])
    assert slerp(vectors)["w"].tolist() == pytest.approx([0.5, 0])  # parallel
    quirk = slerp(vectors, compat="fusionbench")["w"].tolist()  # cos 1e-9: 90 degrees
    assert quirk == pytest.approx([math.sin(math.pi / 4), 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_against_the_formula(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    base, a, b = (torch.randn(30, 7, generator=generator).to(dtype) for _ in range(3))
    vectors = TaskVectors.from_state_dicts({"w": base}, {"a": {"w": a}, "b": {"w": b}})
    merged = slerp(vectors, t=0.35)["w"]
    x, y = a.double(), b.double()
    angle = torch.arccos((x * y).sum() / x.norm() / y.norm())
    wanted = (torch.sin(0.65 * angle) * x + torch.sin(0.35 * angle) * y) / torch.sin(angle)
    assert merged.dtype == dtype
    torch.testing.assert_close(merged, wanted.to(dtype))


def test_one_expert_is_joined_with_the_base() -> None:
    vectors = pair([0.0, 3.0], [9.0, 9.0], base=[3.0, 0.0])
    merged = slerp(vectors, t=1 / 3, experts=["a"])["w"].tolist()
    assert merged == pytest.approx([3 * math.cos(math.pi / 6), 1.5])
    assert_same_bits(slerp(vectors, t=0.0, experts=["a"]), vectors.base)
    alone = toy("mixed", TASKS[:1])
    assert_same_bits(slerp(alone, t=0.0), alone.base)


def test_names_and_ends() -> None:
    forward = slerp(toy(), t=0.3, experts=TASKS[:2])
    backward = slerp(toy(), t=0.7, experts=TASKS[1::-1])
    for name, tensor in forward.items():
        torch.testing.assert_close(tensor, backward[name])
    whole = slerp(toy("mixed"), t=1.0, experts=TASKS[:2])
    for name, tensor in state_dict("mixed", 2).items():
        torch.testing.assert_close(whole[name], tensor)
    with pytest.raises(InputError, match=r"slerp: experts: mnist, svhn, dtd; two names, or one"):
        slerp(toy())
    with pytest.raises(InputError, match="slerp: experts: none; two names"):
        slerp(toy(), experts=[])
    with pytest.raises(InputError, match="slerp: experts: dtd, dtd; two names"):
        slerp(toy(), experts=["dtd", "dtd"])
    with pytest.raises(InputError, match="unknown expert 'svn'; did you mean 'svhn'"):
        slerp(toy(), experts=["mnist", "svn"])
