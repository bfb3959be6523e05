"""Batched decompositions, as GPUs run them, on the CPU against those of single matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusion.methods.spectral import batched, iso, tsv
from fusion.methods.spectral.batched import leading_directions, newton_schulz, polar_factors
from fusion.methods.spectral.svd import leading, polar
from tests.fusion.methods.spectral.test_svd import low_rank, matrix

KNOWN = [torch.float32, torch.float64]
LARGE = [(160, 160), (200, 140), (140, 200)]
SMALL = [(40, 40), (60, 25), (25, 60), (9, 1), (1, 1)]


def decays(rows: int, columns: int, last: float, seed: int) -> Tensor:
    """Entries that float32 knows; singular values decay evenly from 1 to `last`."""
    size = min(rows, columns)
    left, right = (torch.linalg.qr(matrix(each, size, seed)).Q for each in (rows, columns))
    values = torch.logspace(0, torch.tensor(last).log10().item(), size, dtype=torch.float64)
    return (left * values @ right.T).float().double()


def alike(shape: tuple[int, int]) -> list[Tensor]:
    """A noise matrix, two with decay, one of low rank, and zeros."""
    noise, zeros = matrix(*shape), torch.zeros(shape).double()
    decay = [decays(*shape, last, seed) for seed, last in ((1, 1e-1), (2, 1e-3))]
    return [noise, *decay, low_rank(*shape, rank=max(min(shape) // 4, 1)), zeros]


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("shape", [*SMALL, *LARGE])
def test_polar_factors(shape: tuple[int, int], known: torch.dtype) -> None:
    given = alike(shape)
    if known == torch.float64:
        given = given[:3]
    factors, totals = polar_factors(torch.stack(given), known)
    assert factors.dtype == known
    for found, total, each in zip(factors, totals, given, strict=True):
        wanted, whole = polar(each, known)
        assert float((found - wanted).norm()) <= 1e-5 * max(float(wanted.norm()), 1.0)
        assert float(total) == pytest.approx(float(whole), rel=1e-6)


def test_newton_schulz_refuses_matrices_without_full_rank() -> None:
    given = torch.stack(alike((160, 150)))
    factors, totals, right = newton_schulz(given, 1e-5)
    assert right.tolist() == [True, True, True, False, False]
    for found, total, each in zip(factors[:3], totals, given, strict=False):
        values = torch.linalg.svdvals(each)
        assert float(total) == pytest.approx(float(values.sum()), rel=1e-12)
        assert float((found.T @ found - torch.eye(150)).norm()) < 1e-11
    short = decays(160, 150, 1e-6, 3)[None]
    assert newton_schulz(short, 1e-5)[2].tolist() == [False]


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("shape", [*SMALL, *LARGE])
def test_leading_directions(shape: tuple[int, int], known: torch.dtype) -> None:
    given = alike(shape)
    for count in {1, max(min(shape) // 8, 1), min(shape)}:
        found = leading_directions(torch.stack(given), count, known)
        for at, each in enumerate(given):
            wanted = leading(each, count, known)
            torch.testing.assert_close(found.values[at], wanted.values, rtol=1e-7, atol=1e-7)
            product = found.left[at] * found.values[at] @ found.right[at].T
            exact = wanted.left * wanted.values @ wanted.right.T
            assert float((product - exact).norm()) <= 1e-5 * max(float(exact.norm()), 1e-3)


def test_the_subspace_iteration_is_used_where_values_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = batched.leading_by_gram

    def seen(stack: Tensor, count: int) -> batched.Directions:
        calls.append(len(stack))
        return plain(stack, count)

    monkeypatch.setattr(batched, "leading_by_gram", seen)
    given = [decays(200, 180, 1e-2, 1), decays(200, 180, 1e-4, 2)]
    leading_directions(torch.stack(given), 20, torch.float32)
    assert calls == []
    flat = torch.linalg.qr(matrix(200, 180)).Q
    leading_directions(torch.stack([*given, flat]), 20, torch.float32)
    assert calls == [1]  # its singular values are equal: no leading ones


@pytest.mark.parametrize("entries", [1 << 22, 30_000])
def test_merges_of_stacks_equal_those_of_single_matrices(
    entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "ENTRIES", entries)
    stack = torch.stack(
        [
            torch.stack([decays(*shape, 1e-3, 10 * k + t) for t in range(3)])
            for k in range(2)
            for shape in [(150, 140)]
        ]
    ).float()
    found = tsv.orthogonalised_together(stack, 46)
    for each, deltas in zip(found, stack, strict=True):
        wanted = tsv.orthogonalised(deltas, 46)
        assert float((each - wanted).norm()) <= 1e-5 * float(wanted.norm())
    found = iso.with_tasks_together(stack, 80, 20)
    for each, deltas in zip(found, stack, strict=True):
        wanted = iso.with_tasks(deltas, 80, 20)
        assert float((each - wanted).norm()) <= 1e-5 * float(wanted.norm())


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("size", [30, 200])
def test_equal_singular_values_are_not_cut_apart(size: int, known: torch.dtype) -> None:
    flat = torch.linalg.qr(matrix(size, size)).Q
    halved = flat * torch.tensor([3.0] * 10 + [1.0] * (size - 10))
    given = torch.stack([flat, halved, decays(size, size, 1e-2, 1)])
    for count, wanted in ((5, [0, 0, 5]), (10, [0, 10, 10]), (20, [0, 10, 20])):
        found = leading_directions(given, count, known)
        assert found.values.count_nonzero(1).tolist() == wanted
        for at, each in enumerate(given):
            alone = leading(each, count, known)
            torch.testing.assert_close(found.values[at], alone.values, rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(
                found.left[at] @ found.right[at].T, alone.left @ alone.right.T, rtol=0, atol=1e-5
            )
