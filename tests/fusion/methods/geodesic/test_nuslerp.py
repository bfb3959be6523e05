"""NuSLERP by hand, against its formula in float64, and where there is no arc."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.geodesic.nuslerp import nuslerp
from fusion.methods.geodesic.slerp import slerp
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.laws import SCHEMAS, assert_same_bits, copied, state_dict, toy
from tests.fusion.methods.geodesic.arcs import models, vectors_of_models

KINDS: Any = ("tensor", "row", "column")


def of_matrices(first: Any, second: Any) -> TaskVectors:
    ends = torch.tensor([first, second], dtype=torch.float32)
    return TaskVectors(("a", "b"), {"w": torch.zeros_like(ends[0])}, {"w": ends})


def test_by_hand() -> None:
    vectors = of_matrices([[2.0, 0.0], [1.0, 1.0]], [[0.0, 2.0], [1.0, 1.0]])
    # rows: (2, 0) and (0, 2) are at 90 degrees, (1, 1) and (1, 1) are one
    rows = nuslerp(vectors, t=1 / 3, granularity="row")["w"].tolist()
    assert rows[0] == pytest.approx([2 * math.cos(math.pi / 6), 1.0])
    assert rows[1] == pytest.approx([1, 1])
    # columns: (2, 1) and (0, 1), cosine 1/√5
    angle = math.acos(5**-0.5)
    one, other = (math.sin(part * angle) / math.sin(angle) for part in (2 / 3, 1 / 3))
    column = nuslerp(vectors, t=1 / 3, granularity="column")["w"][:, 0].tolist()
    assert column == pytest.approx([2 * one, one + other])
    # the tensor: both of squared length 6, inner product 2
    angle = math.acos(1 / 3)
    one, other = (math.sin(part * angle) / math.sin(angle) for part in (2 / 3, 1 / 3))
    whole = nuslerp(vectors, t=1 / 3)["w"].flatten().tolist()
    assert whole == pytest.approx([2 * one, 2 * other, one + other, one + other])


def textbook(first: Tensor, second: Tensor, t: float, axes: tuple[int, ...]) -> Tensor:
    """The formula, with vectors along these axes."""
    unit = [each / each.norm(2, dim=axes, keepdim=True) for each in (first, second)]
    angle = (unit[0] * unit[1]).sum(axes, keepdim=True).clamp(-1, 1).arccos()
    return (((1 - t) * angle).sin() * first + (t * angle).sin() * second) / angle.sin()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("of", ["weights", "task_vectors"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 2), (300, 257), (9,)])
def test_against_the_formula(kind: Any, of: Any, dtype: torch.dtype, shape: Any) -> None:
    base, deltas = (each.to(dtype).double() for each in models(3, *shape))
    axes = {"tensor": tuple(range(len(shape))), "row": (-1,), "column": (0,)}[kind]
    ends = deltas + base if of == "weights" else deltas
    wanted = textbook(ends[2], ends[0], 0.3, axes)
    wanted = wanted if of == "weights" else wanted + base
    vectors = vectors_of_models(base, deltas, dtype)
    found = nuslerp(vectors, t=0.3, experts=["m2", "m0"], granularity=kind, of=of)["w"]
    error = (found.double() - wanted).norm() / (wanted - base).norm()
    assert float(error) < (2e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_base_and_expert_and_the_ends(kind: Any) -> None:
    for schema in SCHEMAS:
        vectors = toy(schema)
        start = nuslerp(vectors, t=0.0, experts=["svhn"], granularity=kind)
        for name, tensor in start.items():
            torch.testing.assert_close(tensor, vectors.base[name])
        end = nuslerp(vectors, t=1.0, experts=["dtd", "svhn"], granularity=kind)
        for name, delta in vectors.deltas.items():
            wide = vectors.base[name].double() + delta[1].double()
            torch.testing.assert_close(end[name], wide.to(end[name].dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_no_arc(kind: Any) -> None:
    row = [[3.0, 4.0]]
    against = nuslerp(of_matrices(row, [[-3.0, -4.0]]), t=0.25, granularity=kind)["w"]
    torch.testing.assert_close(against, torch.tensor([[1.5, 2.0]]))
    same = nuslerp(of_matrices(row, row), t=0.25, granularity=kind)["w"]
    assert torch.equal(same, torch.tensor(row))
    longer = nuslerp(of_matrices(row, [[6.0, 8.0]]), granularity=kind)["w"]
    torch.testing.assert_close(longer, torch.tensor([[4.5, 6.0]]))
    part = math.sin(math.pi / 8)  # a vector without length is at 90 degrees, as in mergekit
    turned = nuslerp(of_matrices([[0.0, 0.0]], row), t=0.25, granularity=kind)["w"]
    torch.testing.assert_close(turned, torch.tensor([[3 * part, 4 * part]]))
    nothing = nuslerp(of_matrices([[0.0, 0.0]], [[0.0, 0.0]]), granularity=kind)["w"]
    assert nothing.tolist() == [[0, 0]]


def test_by_tensor_it_is_slerp() -> None:
    vectors = toy(tasks=("mnist", "svhn"))
    ours, theirs = nuslerp(vectors, t=0.4), slerp(vectors, t=0.4, threshold=1.0)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor)


def test_equal_models_merge_to_themselves() -> None:
    base = state_dict("mixed", 0)
    experts = {task: copied(base) for task in ("a", "b")}
    vectors = TaskVectors.from_state_dicts(base, experts)
    for kind in KINDS:
        assert_same_bits(nuslerp(vectors, t=0.7, granularity=kind), base)


def test_other_numbers_of_models_are_refused() -> None:
    with pytest.raises(InputError, match="nuslerp: experts: mnist, svhn, dtd; two names"):
        nuslerp(toy())
    with pytest.raises(InputError, match="two needed to interpolate task vectors"):
        nuslerp(toy(), experts=["mnist"], of="task_vectors")
    with pytest.raises(InputError, match=r"nuslerp: experts: .*did you mean 'mnist'"):
        nuslerp(toy(), experts=["mnits", "svhn"])
