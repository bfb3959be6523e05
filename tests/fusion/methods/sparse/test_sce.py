"""SCE by hand, against its steps in float64, and equal variances."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from fusion.methods.sparse.sce import sce
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import drawn, vectors_of
from tests.fusion.laws import SCHEMAS, TASKS, assert_same_bits, toy


def test_by_hand() -> None:
    # variances 4, 0, 0.25, 1: two of the three that are not 0 are the first and the last entry
    rows = [3.0, 1.0, 1.0, -1.0], [-1.0, 1.0, 0.0, -3.0]
    # squared lengths 10 and 10: η = 1/2 each; sums 2 and −4
    assert sce(vectors_of(*rows), density=0.7)["w"].tolist() == pytest.approx([1.5, 0, 0, -2])
    by_kit = sce(vectors_of(*rows), density=0.7, compat="mergekit")["w"].tolist()
    assert by_kit == pytest.approx([3, 0, 0, -2])  # divided by the weights that agree
    released = sce(vectors_of(*rows), density=0.7, compat="released")["w"].tolist()
    assert released == pytest.approx([3, 1, 1, -2])  # entries that are not selected are merged too


def reference(rows: np.ndarray, density: float, compat: str) -> np.ndarray:
    """Merged task vector of [T, n] in float64, by sorting."""
    spread = rows.var(0)
    kept = int(density * np.count_nonzero(spread) + 1e-6)
    mask = np.zeros(rows.shape[1])
    mask[np.argsort(-spread)[:kept]] = 1
    chosen = rows * mask
    weights = (chosen**2).sum(1)
    weights = weights / weights.sum() if weights.sum() else np.full(len(rows), 1 / len(rows))
    used = rows if compat == "released" else chosen
    sign = np.sign(used.sum(0))
    if compat != "paper":
        sign[sign == 0] = 1
    agrees = (np.sign(used) == sign) & (used != 0)
    merged = (used * agrees * weights[:, None]).sum(0)
    if compat == "paper":
        return merged
    total = (agrees * weights[:, None]).sum(0)
    return merged / np.where(total == 0, 1, total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("compat", ["paper", "released", "mergekit"])
def test_against_float64(compat: Any, dtype: torch.dtype) -> None:
    deltas = drawn(5, 31, 40, seed=1, dtype=dtype)
    vectors = TaskVectors(tuple("abcde"), {"w": drawn(31, 40, dtype=dtype)}, {"w": deltas})
    for density in (0.05, 0.3, 0.9):
        wide = reference(deltas.double().flatten(1).numpy(), density, compat)
        wanted = vectors.base["w"].double() + 0.7 * torch.from_numpy(wide).view(31, 40)
        found = sce(vectors, density=density, scale=0.7, compat=compat)["w"]
        torch.testing.assert_close(found, wanted.to(dtype), rtol=1e-5, atol=1e-5)


def test_large_tensors_are_cut_exactly() -> None:
    deltas = drawn(3, 70_001, seed=1)
    vectors = TaskVectors(TASKS, {"w": torch.zeros(70_001)}, {"w": deltas})
    wanted = torch.from_numpy(reference(deltas.double().numpy(), 0.1, "paper")).float()
    torch.testing.assert_close(sce(vectors)["w"], wanted, rtol=1e-5, atol=1e-6)


def test_entries_of_equal_variance_are_selected_together() -> None:
    rows = [1.0, -1.0, 3.0, 0.0], [-1.0, 1.0, 1.0, 0.0]  # variances 1, 1, 1, 0
    for order in permutations(range(4)):
        moved = [[row[at] for at in order] for row in rows]
        for both in (moved, moved[::-1]):
            found = sce(vectors_of(*both), density=0.34)["w"].tolist()
            weight = 11 / 14  # squared lengths 11 and 3: all three are selected
            wanted = [[0, 0, 3 * weight + (1 - weight), 0][at] for at in order]
            assert found == pytest.approx(wanted)


def test_ends() -> None:
    for schema in SCHEMAS:
        vectors = toy(schema)
        assert_same_bits(sce(vectors, density=0.0), vectors.base)
        assert_same_bits(sce(vectors, scale=0.0), vectors.base)
        alone = toy(schema, TASKS[:1])
        for name, tensor in sce(alone).items():
            if name in alone.deltas:
                wide = alone.base[name].double() + alone.deltas[name][0].double()
                torch.testing.assert_close(tensor, wide.to(tensor.dtype))


def test_equal_experts() -> None:
    row = [1.0, -2.0, 0.5]
    assert sce(vectors_of(row, row), density=0.9)["w"].tolist() == [0, 0, 0]  # nothing varies
    assert sce(vectors_of(row, row), density=1.0)["w"].tolist() == pytest.approx(row)
    nothing = vectors_of(row, row)
    assert sce(nothing, density=0.5, compat="released")["w"].tolist() == pytest.approx(row)
