"""Radix select against a sort."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusion.task_vectors import streaming_topk
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.streaming_topk import kth_largest, row_magnitudes


def grouped(tensors: list[Tensor]) -> list[list[Tensor]]:
    """One row, all tensors in one group."""
    return [[tensor[None] for tensor in tensors]]


def sorted_kth(tensors: list[Tensor], rank: int) -> float:
    flat = torch.cat([tensor.reshape(-1).abs().double() for tensor in tensors])
    return float(flat.sort(descending=True).values[rank - 1])


def awkward(dtype: torch.dtype) -> list[Tensor]:
    """Ties, zeros of both signs, subnormals, huge values, odd shapes."""
    generator = torch.Generator().manual_seed(0)
    tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    return [
        torch.randn(40, 30, generator=generator, dtype=dtype) * 0.01,
        torch.randn(1000, generator=generator, dtype=dtype).round(decimals=1),
        torch.tensor([0.0, -0.0, tiny, -tiny / 4, tiny / 2, huge, -huge, 1.0, -1.0], dtype=dtype),
        torch.zeros(50, dtype=dtype),
        torch.tensor(-2.5, dtype=dtype),
        torch.zeros(0, 3, dtype=dtype),
        torch.randn(20, 10, generator=generator, dtype=dtype).T,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [64, 1 << 15])
def test_every_rank_is_that_of_a_sort(
    dtype: torch.dtype, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming_topk, "CHUNK", step)
    tensors = awkward(dtype)
    size = sum(tensor.numel() for tensor in tensors)
    for rank in (1, 2, 3, 10, 500, size // 2, size - 60, size):
        found = run_surveys([kth_largest(grouped(tensors), [rank], wide=dtype == torch.float64)])
        assert found == [sorted_kth(tensors, rank)], rank


def test_rows_have_ranks_of_their_own() -> None:
    stacks = [torch.randn(2, 3, 100), torch.randn(2, 200)]
    rows = [[stack[t] for stack in stacks] for t in range(2)]
    wanted = [sorted_kth(rows[0], 17), sorted_kth(rows[1], 450)]
    assert run_surveys([kth_largest([stacks], [17, 450])]) == wanted


@pytest.mark.parametrize("pending", [7, streaming_topk.PENDING])
def test_groups_add_up_to_one(pending: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_topk, "PENDING", pending)
    tensors = awkward(torch.float32)
    groups = [grouped(tensors[:2])[0], [], *([tensor[None]] for tensor in tensors[2:])]
    size = sum(tensor.numel() for tensor in tensors)
    for rank in (1, 10, 500, size // 2):
        assert run_surveys([kth_largest(groups, [rank])]) == [sorted_kth(tensors, rank)]


@pytest.mark.parametrize("wide", [False, True])
def test_shards_find_the_rank_of_the_whole(wide: bool) -> None:
    dtype = torch.float64 if wide else torch.float32
    tensors = awkward(dtype)
    shards = [tensors[:1], tensors[1:4], [], tensors[4:]]
    for rank in (1, 100, 1500):
        found = run_surveys([kth_largest(grouped(shard), [rank], wide=wide) for shard in shards])
        assert found == [sorted_kth(tensors, rank)]


def test_low_precision_is_read_as_float32() -> None:
    tensors = [torch.randn(300).to(dtype) for dtype in (torch.float16, torch.bfloat16)]
    assert run_surveys([kth_largest(grouped(tensors), [77])]) == [sorted_kth(tensors, 77)]


def test_float32_beside_float64_is_read_as_float64() -> None:
    tensors = [torch.randn(300), torch.randn(300, dtype=torch.float64)]
    assert run_surveys([kth_largest(grouped(tensors), [77], wide=True)]) == [
        sorted_kth(tensors, 77)
    ]


def test_all_equal() -> None:
    assert run_surveys([kth_largest(grouped([torch.full((1000,), -0.3)]), [999])]) == [
        float(torch.tensor(0.3))
    ]


def test_what_is_read_is_not_written() -> None:
    tensors = awkward(torch.float32)
    before = [tensor.clone() for tensor in tensors]
    run_surveys([kth_largest(grouped(tensors), [100])])
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("few", [0, streaming_topk.FEW])
def test_magnitudes_of_rows(dtype: torch.dtype, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_topk, "FEW", few)
    for size in (1, 300, 40_000):
        rows = torch.randn(3, size, dtype=dtype).round(decimals=2)
        before = rows.clone()
        ranks = (max(1, size // 3), 1, size, max(1, size // 3))
        for rank, found in zip(ranks, row_magnitudes(rows, ranks), strict=True):
            assert found.tolist() == [sorted_kth([row], rank) for row in rows]
        assert torch.equal(rows, before)
