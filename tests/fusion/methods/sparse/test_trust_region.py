"""trust_region by hand, against a sort in float64, at its edges, and in shards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusion.methods.sparse.trust_region import conflict, trust_region, trust_region_survey
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import drawn_as_double as drawn
from tests.fusion.laws import toy


def vectors_of(rows: Tensor) -> TaskVectors:
    """Task vectors [T, n] of one tensor over a base of zeros."""
    tasks = tuple(f"t{at}" for at in range(len(rows)))
    return TaskVectors(tasks, {"w": torch.zeros_like(rows[0])}, {"w": rows})


def textbook(deltas: Tensor, scale: float, density: float) -> Tensor:
    """Pairs of tasks, a sort of the whole, the entries below the quantile."""
    found = torch.zeros_like(deltas[0])
    for i in range(len(deltas)):
        for j in range(len(deltas)):
            if i != j:
                found += deltas[i].abs() * deltas[j].abs()
    least = found.flatten().sort().values[int(found.numel() * density)]
    return scale * deltas.sum(0) * (found < least)


def test_by_hand() -> None:
    # Ω = 2·(1·2 + 1·3 + 2·3) = 22, 2·1 = 2, 0, 2·(4·1) = 8
    rows = torch.tensor([[1.0, 1.0, 7.0, 4.0], [-2.0, 1.0, 0.0, 0.0], [3.0, 0.0, 0.0, -1.0]])
    torch.testing.assert_close(conflict(rows), torch.tensor([22.0, 2.0, 0.0, 8.0]))
    for density, wanted in (
        (0.75, [0.0, 1.0, 3.5, 1.5]),
        (0.5, [0.0, 1.0, 3.5, 0.0]),
        (0.0, [0.0, 0.0, 3.5, 0.0]),
        (1.0, [1.0, 1.0, 3.5, 1.5]),
    ):
        merged = trust_region(vectors_of(rows), scale=0.5, density=density)["w"]
        torch.testing.assert_close(merged, torch.tensor(wanted))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_a_sort(density: float, dtype: torch.dtype) -> None:
    deltas = drawn(4, 1000, dtype=torch.float32).to(dtype)
    merged = trust_region(vectors_of(deltas), scale=0.7, density=density)["w"]
    torch.testing.assert_close(merged, textbook(deltas.double(), 0.7, density).to(dtype))


def test_the_quantile_is_that_of_the_whole_model() -> None:
    vectors = toy()
    names = list(vectors.base)
    shards = [vectors.restrict(names[:2]), vectors.restrict(names[2:])]
    whole = run_surveys([trust_region_survey(vectors, density=0.8)])
    assert whole == run_surveys([trust_region_survey(shard, density=0.8) for shard in shards])
    flat = torch.cat([delta.reshape(len(delta), -1) for delta in vectors.deltas.values()], 1)
    wanted = conflict(flat).sort().values[int(flat.shape[1] * 0.8)]
    assert whole == float(wanted)


def test_entries_that_tie_are_all_left_out() -> None:
    rows = torch.ones(2, 4)
    rows[:, 0] = 0.5
    merged = trust_region(vectors_of(rows), scale=1.0, density=0.75)["w"]
    assert merged.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_one_task_has_no_conflict() -> None:
    rows = drawn(1, 50)
    torch.testing.assert_close(trust_region(vectors_of(rows), scale=1.0)["w"], rows[0])
