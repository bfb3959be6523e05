"""TIES against the textbook in float64, and by hand."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.methods.sparse.ties import ties, ties_survey
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.sparsify import TrimThresholds, kept_entries
from fusion.task_vectors.task_vectors import TaskVectors

A = [0.10, -0.50, 0.30, 0.02, -0.40, 0.05, 0.20, -0.01, 0.60, -0.03]
B = [-0.20, -0.10, 0.35, -0.45, 0.40, 0.0, 0.15, 0.25, -0.05, 0.07]


def vectors_of(*rows: list[float], split: int | None = None) -> TaskVectors:
    """Task vectors over a zero base in float64; as two tensors where `split` says so."""

    def parts(row: list[float]) -> dict[str, Tensor]:
        tensor = torch.tensor(row, dtype=torch.float64)
        return {"w": tensor} if split is None else {"u": tensor[:split], "w": tensor[split:]}

    experts = {f"t{index}": parts(row) for index, row in enumerate(rows)}
    return TaskVectors.from_state_dicts(parts([0.0] * len(rows[0])), experts)


def flat(merged: dict[str, Tensor]) -> list[float]:
    return torch.cat([tensor.reshape(-1) for tensor in merged.values()]).tolist()


def total(rows: Tensor) -> Tensor:
    """Sum [d] of [T, d] whatever the order of T: exact for float32, else from the least upwards."""
    if rows.dtype == torch.float32:
        return torch.tensor([math.fsum(column) for column in rows.T.tolist()]).double()
    return torch.tensor([sum(sorted(column)) for column in rows.T.tolist()], dtype=torch.float64)


def textbook(rows: Tensor, density: float, merge: str, compat: str) -> Tensor:
    """[T, d] task vectors -> [d] merged, as in the paper, over whole vectors."""
    size = rows.shape[1]
    kept = math.floor(size * density + 1e-6)
    if compat == "fusionbench":
        kept = int(size * density) + 1
    trimmed = torch.zeros_like(rows)
    for row, out in zip(rows, trimmed, strict=True):
        if kept:
            cut = row.abs().sort(descending=True).values[min(kept, size) - 1]
            out.copy_(torch.where(row.abs() >= cut, row, 0))
    sign = total(trimmed).sign().to(rows.dtype)
    if compat == "fusionbench":
        sign = torch.where(sign == 0, sign.sum().sign(), sign)
        agrees = torch.where(sign > 0, trimmed > 0, trimmed < 0)
    else:
        agrees = (trimmed * sign) > 0
    chosen = trimmed * agrees
    if merge == "sum":
        return chosen.sum(0)
    if merge == "max":
        return chosen.abs().max(0).values * sign
    return chosen.sum(0) / (chosen != 0).sum(0).clamp(min=1)


def test_fixture_fusionbench() -> None:
    wanted = [0, -0.5, 0.35, -0.45, -0.4, 0, 0, 0, 0.6, 0]
    for merge in ("sum", "mean"):
        merged = ties(vectors_of(A, B), density=0.2, merge=merge, compat="fusionbench")
        assert flat(merged) == pytest.approx(wanted)


def test_fixture_paper_by_hand() -> None:
    # Two of ten survive: .6 and -.5 of A, -.45 and .4 of B. None meet.
    wanted = [0, -0.5, 0, -0.45, 0.4, 0, 0, 0, 0.6, 0]
    assert flat(ties(vectors_of(A, B), density=0.2)) == pytest.approx(wanted)
    # Three survive: -.4 of A and .35 of B as well. At index 4 -.4 meets .4: no mass, no sign.
    wanted = [0, -0.5, 0.35, -0.45, 0, 0, 0, 0, 0.6, 0]
    assert flat(ties(vectors_of(A, B), density=0.3)) == pytest.approx(wanted)


def test_mean_sum_max_by_hand() -> None:
    vectors = vectors_of([4.0, 1.0, -1.0], [2.0, -3.0, -2.0], [-3.0, 5.0, -3.0])
    # Masses 3, 3, -6: the agreeing entries are {4, 2}, {1, 5}, {-1, -2, -3}.
    for merge, wanted in {"mean": [3, 3, -2], "sum": [6, 6, -6], "max": [4, 5, -3]}.items():
        assert flat(ties(vectors, density=1.0, merge=merge)) == wanted  # type: ignore[arg-type]
    assert flat(ties(vectors, density=1.0, scale=0.5)) == [1.5, 1.5, -1.0]


def test_the_majority_breaks_zero_masses_for_fusionbench_only() -> None:
    # Masses 0, 3, 5, -1: the majority is plus.
    rows = [2.0, 1.0, 2.0, -1.0], [-2.0, 2.0, 3.0, 0.0]
    assert flat(ties(vectors_of(*rows), density=1.0, merge="sum")) == [0, 3, 5, -1]
    assert flat(ties(vectors_of(*rows), density=1.0, merge="sum", compat="fusionbench")) == [
        2,
        3,
        5,
        -1,
    ]


def test_an_undecided_majority_counts_as_negative_except_for_max() -> None:
    vectors = vectors_of([2.0, 1.0], [-3.0, -1.0], [1.0, 0.0])
    kinds: dict[Any, float] = {"sum": -1.0, "mean": -1.0, "max": 0.0}
    balanced = vectors_of([2.0, 1.0, 5.0, -5.0], [-2.0, -1.0, 0.0, 0.0])
    for merge, wanted in kinds.items():
        merged = flat(ties(balanced, density=1.0, merge=merge, compat="fusionbench"))
        assert merged[1] == wanted
        assert flat(ties(vectors, density=1.0, merge=merge))[1] == 0.0


@pytest.mark.parametrize("compat", ["paper", "fusionbench"])
@pytest.mark.parametrize("merge", ["mean", "sum", "max"])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.2, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_textbook(compat: Any, merge: Any, density: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 997, generator=generator, dtype=dtype)
    rows[:, :300] = rows[:, :300].round(decimals=1)  # ties, zeros, zero masses
    base = torch.randn(997, generator=generator, dtype=dtype)
    vectors = TaskVectors(
        tuple("abcde"),
        {"u": base[:400].view(20, 20), "w": base[400:]},
        {"u": rows[:, :400].view(5, 20, 20), "w": rows[:, 400:]},
    )
    merged = ties(vectors, density=density, scale=0.7, merge=merge, compat=compat)
    wanted = base.double() + 0.7 * textbook(rows, density, merge, compat).double()
    torch.testing.assert_close(
        torch.cat([tensor.reshape(-1) for tensor in merged.values()]), wanted.to(dtype)
    )


@pytest.mark.parametrize(
    ("size", "density", "paper", "fusionbench"),
    [
        (10, 0.2, 2, 3),
        (10, 0.3, 3, 4),
        (1000, 0.2, 200, 201),
        (10, 0.0, 0, 1),
        (10, 1.0, 10, 10),
        (10, 0.29, 2, 3),
        (100, 0.57, 57, 57),  # 100 · 0.57 is 56.999…: the paper's floor is lifted, int() is not
        (0, 0.5, 0, 0),
    ],
)
def test_how_many_are_kept(size: int, density: float, paper: int, fusionbench: int) -> None:
    assert kept_entries(size, density, "paper") == paper
    assert kept_entries(size, density, "fusionbench") == fusionbench
    if size:
        rows = [float(value) for value in range(1, size + 1)]
        for compat, wanted in (("paper", paper), ("fusionbench", fusionbench)):
            merged = flat(ties(vectors_of(rows), density=density, compat=compat))  # type: ignore[arg-type]
            assert sum(value != 0 for value in merged) == wanted


def test_ties_at_the_cut_are_all_kept_and_zeros_never() -> None:
    assert flat(ties(vectors_of([1.0, -1.0, 1.0, 0.5]), density=0.5)) == [1, -1, 1, 0]
    # Six entries asked for, two are not zero: a mean over zeros too would shrink them.
    rows = [3.0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1.0, -2.0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert flat(ties(vectors_of(*rows), density=0.6))[:3] == [2, -2, 0]


def test_the_cut_is_the_models_or_each_tensors() -> None:
    vectors = vectors_of([1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0], split=4)
    assert flat(ties(vectors, density=0.5)) == [0, 0, 0, 0, 10, 20, 30, 40]
    by_tensor = ties(vectors, density=0.5, granularity="tensor")
    assert flat(by_tensor) == [0, 0, 3, 4, 0, 0, 30, 40]


def test_density_zero_is_the_base() -> None:
    base = {"w": torch.randn(9)}
    vectors = TaskVectors.from_state_dicts(base, {"a": {"w": torch.randn(9)}})
    for granularity in ("model", "tensor"):
        merged = ties(vectors, density=0.0, granularity=granularity)  # type: ignore[arg-type]
        assert torch.equal(merged["w"], base["w"])


def test_float32_entries_at_a_cut_read_as_float64_are_kept() -> None:
    deltas = {
        "single": torch.tensor([[0.1, 0.2]]),
        "double": torch.tensor([[0.05, 0.3]], dtype=torch.float64),
    }
    base = {key: torch.zeros_like(rows[0]) for key, rows in deltas.items()}
    merged = ties(TaskVectors(("a",), base, deltas), density=0.75)
    assert [bool(value) for value in flat(merged)] == [True, True, False, True]


def test_the_survey_of_shards_is_that_of_the_whole() -> None:
    rows = torch.randn(3, 60, generator=torch.Generator().manual_seed(1)).tolist()
    vectors = vectors_of(*rows, split=25)
    shards = [vectors.restrict([name]) for name in ("u", "w")]
    for compat, granularity in product(("paper", "fusionbench"), ("model", "tensor")):
        options: dict[str, Any] = {"compat": compat, "granularity": granularity}
        whole = run_surveys([ties_survey(vectors, **options)])
        parts = run_surveys([ties_survey(shard, **options) for shard in shards])
        assert parts == whole
        if granularity == "model":
            assert isinstance(whole, TrimThresholds)
            continue
        for name, shard in zip("uw", shards, strict=True):  # each tensor as a model of its own
            assert not isinstance(whole, TrimThresholds)
            assert whole[name] == run_surveys([ties_survey(shard, compat=compat)])  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [1, 7, 64])
def test_chunks_do_not_show(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(3, 60, generator=torch.Generator().manual_seed(1)).tolist()
    options: dict[str, Any] = {"density": 0.6, "compat": "fusionbench"}
    whole = flat(ties(vectors_of(*rows), **options))
    monkeypatch.setattr("fusion.task_vectors.sparsify.CHUNK", step)
    assert flat(ties(vectors_of(*rows), **options)) == whole
