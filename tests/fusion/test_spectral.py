"""Singular directions and polar factors against full decompositions, and without full rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusion import spectral
from fusion.spectral import leading, lower_gram, merge_matrices, polar, top_eigen, wide_copy
from tests.fusion.laws import toy

SHAPES = [(40, 40), (60, 25), (25, 60), (1, 9), (9, 1), (1, 1)]
KNOWN = [torch.float32, torch.float64]


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Entries that float32 knows, as float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).double()


def low_rank(rows: int, columns: int, rank: int, seed: int = 0) -> Tensor:
    return (matrix(rows, rank, seed) @ matrix(rank, columns, seed + 1)).float().double()


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("shape", SHAPES)
def test_leading(shape: tuple[int, int], known: torch.dtype) -> None:
    whole = matrix(*shape)
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    for count in {1, min(shape) // 3 or 1, min(shape)}:
        found = leading(whole, count, known)
        assert found.left.shape == (shape[0], count)
        assert found.right.shape == (shape[1], count)
        torch.testing.assert_close(found.values, values[:count], rtol=1e-9, atol=1e-9)
        wanted = left[:, :count] * values[:count] @ right[:count]
        torch.testing.assert_close(
            found.left * found.values @ found.right.T, wanted, rtol=1e-7, atol=1e-7
        )
        eye = torch.eye(count, dtype=torch.float64)
        for side in (found.left, found.right):
            torch.testing.assert_close(side.T @ side, eye, rtol=0, atol=1e-7)


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("shape", SHAPES)
def test_polar(shape: tuple[int, int], known: torch.dtype) -> None:
    whole = matrix(*shape)
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    factor, total = polar(whole, known)
    torch.testing.assert_close(factor, left @ right, rtol=1e-6, atol=1e-6)
    assert float(total) == pytest.approx(float(values.sum()))


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("shape", [(40, 40), (60, 25), (25, 60)])
def test_low_rank_has_no_arbitrary_directions(shape: tuple[int, int], known: torch.dtype) -> None:
    whole = low_rank(*shape, rank=5)
    if known == torch.float64:
        whole = matrix(shape[0], 5) @ matrix(5, shape[1], 1)
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    factor, total = polar(whole, known)
    torch.testing.assert_close(factor, left[:, :5] @ right[:5], rtol=1e-5, atol=1e-5)
    assert float(total) == pytest.approx(float(values[:5].sum()))
    found = leading(whole, 12, known)
    assert bool((found.values[:5] > 0).all())
    for part in (found.left, found.right, found.values[None]):
        assert not part[:, 5:].any()


@pytest.mark.parametrize("known", KNOWN)
def test_zero(known: torch.dtype) -> None:
    for shape in SHAPES:
        nothing = torch.zeros(shape, dtype=torch.float64)
        factor, total = polar(nothing, known)
        assert not factor.any()
        assert float(total) == 0
        assert not any(part.any() for part in leading(nothing, min(shape), known))
    none = leading(matrix(4, 3), 0, known)
    assert [part.numel() for part in none] == [0, 0, 0]


@pytest.mark.parametrize("known", KNOWN)
def test_least(known: torch.dtype) -> None:
    found = leading(torch.diag(torch.tensor([3.0, 2.0, 1.0]).double()), 3, known, least=1.5)
    assert found.values.tolist() == pytest.approx([3, 2, 0])


def test_small_values_are_resolved_beyond_float32_products() -> None:
    # σ from 1 to 1e-3: a Gram matrix in float32 would lose the last third.
    turn = torch.linalg.qr(matrix(30, 30)).Q
    other = torch.linalg.qr(matrix(30, 30, 5)).Q
    whole = turn * torch.logspace(0, -3, 30, dtype=torch.float64) @ other.T
    factor, _ = polar(whole, torch.float32)
    torch.testing.assert_close(factor, turn @ other.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [5, 7, 14, 20])
def test_lower_gram(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "BLOCK", 7)
    whole = matrix(30, size)
    torch.testing.assert_close(lower_gram(whole).tril(), (whole.T @ whole).tril())


def test_some_eigenvectors_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    lower = lower_gram(matrix(50, 30))
    few = top_eigen(lower, 6)
    monkeypatch.setattr(spectral, "FEW", 0.0)
    every = top_eigen(lower, 6)
    torch.testing.assert_close(few[0], every[0])
    torch.testing.assert_close(few[1].abs(), every[1].abs())


def test_copies_are_of_their_own() -> None:
    for dtype in (torch.float32, torch.float64):
        source = torch.ones(4, 3, dtype=dtype).T
        copy = wide_copy(source)
        copy += 1
        assert copy.is_contiguous()
        assert copy.dtype == torch.float64
        assert bool((source == 1).all())


def test_only_matrices_go_through_the_rule() -> None:
    vectors = toy("mixed")
    seen = []

    def first(deltas: Tensor) -> Tensor:
        seen.append(tuple(deltas.shape))
        return deltas[0]

    merged = merge_matrices(vectors, first, scale=2.0)
    assert seen == [(3, 7, 5), (3, 16, 9)]
    for name, deltas in vectors.deltas.items():
        base = vectors.base[name].double()
        rule = deltas[0] if base.ndim == 2 and base.numel() else deltas.mean(0)
        torch.testing.assert_close(merged[name], (base + 2 * rule).to(merged[name].dtype))
