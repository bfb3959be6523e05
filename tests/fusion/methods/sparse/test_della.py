"""DELLA: its probabilities and ranks by hand, its masks in the mean, its merges in float64."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from fusion.methods.sparse.della import della, della_linear, pruned, twice_mean_ranks
from fusion.methods.sparse.ties import ties
from fusion.methods.static.task_arithmetic import task_arithmetic
from fusion.task_vectors.random_draws import key_of, uniform
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import drawn, vectors_of
from tests.fusion.laws import SCHEMAS, TASKS, assert_same_bits, toy


def of_one(rows: torch.Tensor) -> TaskVectors:
    return TaskVectors(("a",), {"w": torch.zeros_like(rows)}, {"w": rows[None]})


def prune(vectors: TaskVectors, density: float, epsilon: float, **options: Any) -> torch.Tensor:
    given = {"rescale": True, "seed": 0, "compat": "paper"} | options
    return pruned(vectors, density, epsilon, **given).deltas["w"]


def test_by_hand() -> None:
    # four entries: q = 0.4, 0.5, 0.6, 0.7 by rank; kept where the entry's own number is below it
    row = torch.tensor([-3.0, 1.0, 4.0, -2.0])
    chance = torch.tensor([0.6, 0.4, 0.7, 0.5])
    draws = uniform((4,), key_of("della", 7, "a", "w"))
    wanted = torch.where(draws < chance, row / chance, 0.0)
    found = prune(of_one(row), 0.55, 0.3, seed=7)[0]
    torch.testing.assert_close(found, wanted)
    assert 0 < int((found != 0).sum()) < 4
    plain = prune(of_one(row), 0.55, 0.3, seed=7, rescale=False)[0]
    torch.testing.assert_close(plain, torch.where(draws < chance, row, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_against_scipy(dtype: torch.dtype) -> None:
    for values in (drawn(7, 33, dtype=dtype), drawn(7, 33, dtype=dtype).round(decimals=1)):
        sizes = values.abs()
        wanted = rankdata(sizes.numpy(), method="average", axis=1) - 1
        assert np.array_equal(twice_mean_ranks(sizes).numpy() / 2, wanted)
    assert twice_mean_ranks(torch.zeros(1, 1)).tolist() == [[0]]


def test_equal_magnitudes_are_kept_alike() -> None:
    """Permuted entries have permuted chances: which of equal ones comes first does not matter."""
    values = torch.tensor([[2.0, -2.0, 1.0, 2.0, 0.0, 0.0]])
    for order in permutations(range(6)):
        moved = values[:, list(order)]
        assert torch.equal(twice_mean_ranks(moved.abs()), twice_mean_ranks(values.abs())[:, order])


@pytest.mark.parametrize("compat", ["paper", "mergekit"])
def test_expectation_and_density(compat: Any) -> None:
    rows = drawn(400, 64)
    half = 0.2 if compat == "mergekit" else 0.1
    kept = torch.zeros(64)
    total = torch.zeros_like(rows)
    for seed in range(40):
        found = prune(of_one(rows), 0.4, 0.2, seed=seed, compat=compat)[0]
        kept += (found != 0).float().gather(1, rows.abs().argsort(1)).mean(0) / 40
        total += found / 40
    wanted = 0.4 - half + 2 * half * torch.arange(64) / 63
    assert float((kept - wanted).abs().max()) < 0.02  # 16,000 draws: σ = 0.004
    if compat == "paper":  # unbiased
        assert float((total - rows).mean()) == pytest.approx(0, abs=0.01)
        assert float((total * rows).sum() / (rows * rows).sum()) == pytest.approx(1, abs=0.02)


def test_mergekit_restores_the_sum_of_magnitudes() -> None:
    vectors = toy()
    left = pruned(vectors, 0.5, 0.2, True, 0, "mergekit")
    for name, delta in vectors.deltas.items():
        found = left.deltas[name]
        for row, before in zip(found, delta, strict=True):
            if bool(row.any()):
                torch.testing.assert_close(row.abs().sum(), before.abs().sum())
                ratios = (row[row != 0] / before[row != 0]).double()
                torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))


def reference(vectors: TaskVectors, density: float, epsilon: float, scale: float) -> torch.Tensor:
    """DELLA of the tensor `w` in float64, entry by entry."""
    found = []
    for task, delta in zip(vectors.tasks, vectors.deltas["w"].double(), strict=True):
        rows = delta.reshape(len(delta), -1).numpy()
        rank = rankdata(np.abs(rows), method="average", axis=1) - 1
        chance = density - epsilon / 2 + epsilon * rank / (rows.shape[1] - 1)
        draws = uniform(rows.shape, key_of("della", 5, task, "w"), dtype=torch.float64).numpy()
        found.append(np.where(draws < chance, rows / chance, 0.0))
    kept = np.stack(found)
    sign = np.sign(kept.sum(0))
    agrees = kept * sign > 0
    merged = (kept * agrees).sum(0) / np.maximum(agrees.sum(0), 1)
    return vectors.base["w"].double() + scale * torch.from_numpy(merged).view_as(vectors.base["w"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(30, 41), (6, 3, 4, 4)])
def test_against_float64(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    deltas = drawn(4, *shape, seed=1, dtype=dtype)
    vectors = TaskVectors(tuple("abcd"), {"w": drawn(*shape, dtype=dtype)}, {"w": deltas})
    merged = della(vectors, density=0.6, epsilon=0.3, scale=0.8, seed=5)["w"]
    wanted = reference(vectors, 0.6, 0.3, 0.8)
    torch.testing.assert_close(merged, wanted.to(dtype), rtol=1e-5, atol=1e-5)


def test_linear_has_the_masks_of_della() -> None:
    vectors = toy()
    left = pruned(vectors, 0.6, 0.2, True, 4, "paper")
    found = della_linear(vectors, density=0.6, epsilon=0.2, scale=0.7, seed=4)
    assert_same_bits(found, task_arithmetic(left, scale=0.7))
    merged = della(vectors, density=0.6, epsilon=0.2, scale=0.7, seed=4)
    assert_same_bits(merged, ties(left, density=1.0, scale=0.7))


def test_ends() -> None:
    for schema in SCHEMAS:
        vectors = toy(schema)
        assert_same_bits(della(vectors, density=0.0), vectors.base)
        assert_same_bits(della_linear(vectors, density=0.0), vectors.base)
        assert_same_bits(della_linear(vectors, density=1.0), task_arithmetic(vectors))
        assert_same_bits(della(vectors, density=1.0, scale=1.0), ties(vectors, density=1.0))


def test_a_window_that_does_not_fit_is_narrowed() -> None:
    rows = of_one(drawn(50, 60))
    for density in (0.1, 0.9):
        room = 2 * min(density, 1 - density)
        wide, fitting = (prune(rows, density, width) for width in (1.0, room))
        assert torch.equal(wide, fitting)


def test_a_sum_of_zero() -> None:
    vectors = vectors_of([2.0, 1.0], [-2.0, 1.0])
    keep: Any = {"density": 1.0, "scale": 1.0}
    assert della(vectors, **keep)["w"].tolist() == [0, 1]
    assert della(vectors, **keep, compat="released")["w"].tolist() == [2, 1]


def test_masks_do_not_depend_on_other_tasks() -> None:
    all_of = pruned(toy(), 0.5, 0.2, True, 0, "paper")
    alone = pruned(toy(tasks=TASKS[1:2]), 0.5, 0.2, True, 0, "paper")
    for name in all_of.deltas:
        assert torch.equal(all_of.deltas[name][1], alone.deltas[name][0])
