"""The plane through three models is orthonormal and goes through them; advantages by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fusion.analysis.landscape import (
    Plane,
    advantage,
    barrier,
    gain_matrix,
    grid,
    plane,
)
from fusion.errors import InputError
from fusion.task_vectors.coding import mix
from fusion.task_vectors.gram import Gram, gram
from fusion.task_vectors.task_vectors import StateDict, TaskVectors

SHAPES = {"a": (11, 3), "b.c": (5,), "d": ()}


def pool() -> tuple[TaskVectors, Gram]:
    generator = torch.Generator().manual_seed(0)

    def model() -> StateDict:
        return {
            name: torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in SHAPES.items()
        }

    base = model()
    vectors = TaskVectors.from_state_dicts(base, {name: model() for name in ("x", "y", "z")})
    return vectors, gram(vectors)


def weights(state: StateDict) -> torch.Tensor:
    return torch.cat([state[name].flatten() for name in SHAPES])


def at(vectors: TaskVectors, where: Plane, x: float, y: float) -> torch.Tensor:
    return weights(mix(vectors, where.to_coding(x, y)))


@pytest.mark.parametrize("origin", [None, "y"])
def test_the_plane_is_orthonormal_and_goes_through_its_models(origin: str | None) -> None:
    vectors, products = pool()
    where = plane(products, "x", "z", origin)
    zero = at(vectors, where, 0, 0)
    u1, u2 = at(vectors, where, 1, 0) - zero, at(vectors, where, 0, 1) - zero
    assert float(u1 @ u2) == pytest.approx(0, abs=1e-12)
    assert float(u1 @ u1) == pytest.approx(1)
    assert float(u2 @ u2) == pytest.approx(1)
    name = "base" if origin is None else origin
    assert list(where.marks) == [name, "x", "z"]
    for task, (x, y) in where.marks.items():
        expert = vectors.base if task == "base" else mix(vectors, one(vectors, task))
        torch.testing.assert_close(at(vectors, where, x, y), weights(expert))
    assert where.marks[name] == (0, 0)
    assert where.marks["x"][1] == 0
    assert where.marks["z"][1] > 0


def one(vectors: TaskVectors, task: str) -> torch.Tensor:
    coding = torch.zeros(1, 3, 1)
    coding[0, vectors.tasks.index(task), 0] = 1
    return coding


def test_marks_by_hand() -> None:
    products = gram([("w", torch.tensor([[3.0, 0.0], [4.0, 2.0]]))], tasks=("i", "j"))
    where = plane(products, "i", "j")
    assert where.marks == {"base": (0, 0), "i": (3, 0), "j": (4, 2)}
    # 1·τ_i + 1·τ_j = (7, 2)
    torch.testing.assert_close(where.to_coding(7, 2).flatten(), torch.ones(2).double())
    xs, ys = grid(where, size=3, margin=0.5)
    assert xs == [-2, 2, 6]
    assert ys == [-1, 1, 3]


def test_models_on_one_line_are_named() -> None:
    row = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([row, -0.3 * row, torch.zeros(1000), row + 1e-3])
    products = gram([("w", rows)], tasks=("a", "b", "none", "near"))
    with pytest.raises(InputError, match="'base', 'a', 'b': 'b' lies on the line"):
        plane(products, "a", "b")
    with pytest.raises(InputError, match="'none' lies on the line"):
        plane(products, "a", "none")
    with pytest.raises(InputError, match="'none' equals 'base'"):
        plane(products, "none", "a")
    with pytest.raises(InputError, match="'a' equals 'a'"):
        plane(products, "a", "b", origin="a")
    with pytest.raises(InputError, match="task 'q': not one of"):
        plane(products, "a", "q")
    assert plane(products, "a", "near").marks["near"][1] > 0  # a thousandth off is a plane


def test_grid_covers_the_marks_and_refuses_nonsense() -> None:
    _, products = pool()
    where = plane(products, "x", "y")
    xs, ys = grid(where)
    assert len(xs) == len(ys) == 21
    for x, y in where.marks.values():
        assert xs[0] < x < xs[-1]
        assert ys[0] < y < ys[-1]
    with pytest.raises(InputError, match=r"size 1, margin 0\.3"):
        grid(where, size=1)


def test_advantage() -> None:
    found = advantage([0.8, 0.6], [0.7, 0.5], [0.5, 0.5])
    assert found.over_mean == pytest.approx(0.7 - 0.55)
    assert found.over_best == pytest.approx(0.7 - 0.6)
    with pytest.raises(InputError, match="same data sets"):
        advantage([0.8, 0.6], 0.7, 0.5)


def test_barrier() -> None:
    # L along the segment: 1, 3, 2, with ends 0 and 2: the line is 0.5, 1, 1.5.
    assert barrier([1, 3, 2], 0, 2, [0.25, 0.5, 0.75]) == (2.0, 0.5)
    alphas = [k / 10 for k in range(1, 10)]
    height, _ = barrier([(a - 0.5) ** 2 for a in alphas], 0.25, 0.25)
    assert height == 0.0  # a valley has none
    with pytest.raises(InputError, match="2 losses at 9 values"):
        barrier([1, 2], 0, 0)
    with pytest.raises(InputError, match="NaN"):
        barrier([math.nan], 0, 0, [0.5])


def test_gain_matrix() -> None:
    # The best of the models between is in the way: 0.72 − max(0.6, 0.8, 0.7).
    found = gain_matrix([0.6, 0.8, 0.7], {(0, 1): 0.85, (0, 2): 0.72})
    wanted = [[0, 0.05, -0.08], [0.05, 0, np.nan], [-0.08, np.nan, 0]]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    with pytest.raises(InputError, match=r"pair \(2, 1\)"):
        gain_matrix([0.6, 0.8, 0.7], {(2, 1): 0.5})
