"""Singular directions and polar factors against full decompositions, and without full rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusion.methods.spectral import svd
from fusion.methods.spectral.svd import (
    complement,
    in_single,
    leading,
    lower_gram,
    merge_matrices,
    polar,
    polished,
    refined,
    top_eigen,
    wide_copy,
)
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
    torch.testing.assert_close(factor, (left @ right).to(known), rtol=1e-6, atol=1e-6)
    assert float(total) == pytest.approx(float(values.sum()))


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("shape", [(40, 40), (60, 25), (25, 60)])
def test_low_rank_has_no_arbitrary_directions(shape: tuple[int, int], known: torch.dtype) -> None:
    whole = low_rank(*shape, rank=5)
    if known == torch.float64:
        whole = matrix(shape[0], 5) @ matrix(5, shape[1], 1)
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    factor, total = polar(whole, known)
    torch.testing.assert_close(factor, (left[:, :5] @ right[:5]).to(known), rtol=1e-5, atol=1e-5)
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
    torch.testing.assert_close(factor, (turn @ other.T).float(), rtol=0, atol=1e-6)


def with_values(rows: int, columns: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """(A matrix [m, n] that float32 knows, its polar factor by a full float64 decomposition)."""
    left = torch.linalg.qr(matrix(rows, len(values), 7)).Q
    right = torch.linalg.qr(matrix(columns, len(values), 8)).Q
    whole = (left * values @ right.T).float().double()
    left, _, right = torch.linalg.svd(whole, full_matrices=False)
    return whole, left @ right


def falling(lowest: float, size: int = 160) -> Tensor:
    return torch.logspace(0, lowest, size, dtype=torch.float64)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def single_polar(whole: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(whole.float(), full_matrices=False)
    factor: Tensor = left @ right
    return factor


WELL = {
    "mild": (200, falling(-0.5)),
    "square": (160, falling(-2)),
    "tall": (400, falling(-2)),
    "few weak": (160, torch.cat([falling(-1, 157), falling(-1, 3) * 1e-3])),
    "one strong": (160, torch.cat([falling(0, 1) * 10, falling(-1, 159)])),
}


@pytest.mark.parametrize("case", WELL)
def test_polished_is_nearer_than_a_float32_decomposition(case: str) -> None:
    rows, values = WELL[case]
    whole, wanted = with_values(rows, 160, values)
    found = polished(whole)
    assert found is not None
    assert found[0].dtype == torch.float32
    assert distance(found[0], wanted) < min(2e-6, distance(single_polar(whole), wanted))
    assert float(found[1]) == pytest.approx(float(torch.linalg.svdvals(whole).sum()), rel=1e-6)
    factor, total = polar(whole.T, torch.float32)  # the shorter side, whichever it is
    assert distance(factor, wanted.T) < 2e-6
    assert float(total) == pytest.approx(float(found[1]), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-40, 1e-12, 1e12])
def test_polished_knows_no_scale(scale: float) -> None:
    whole, wanted = with_values(160, 160, falling(-2))
    found = polished(whole * scale)
    assert found is not None
    assert distance(found[0], wanted) < 2e-6
    assert float(found[1]) == pytest.approx(scale * float(falling(-2).sum()), rel=1e-5)


def test_what_float32_cannot_polish_is_made_in_float64() -> None:
    rank = torch.cat([falling(-1, 150), torch.zeros(10).double()])
    far = falling(-4)
    for values in (rank, far):
        whole, wanted = with_values(160, 160, values)
        assert polished(whole) is None
        if values is rank:
            left, _, right = torch.linalg.svd(whole)
            wanted = left[:, :150] @ right[:150]
        factor, total = polar(whole, torch.float32)
        assert distance(factor, wanted) < 1e-6
        assert float(total) == pytest.approx(float(values.sum()), rel=1e-5)
    assert polished(torch.zeros(160, 160).double()) is None
    assert polished(matrix(100, 100)) is None  # too small to be worth it


def test_refined_is_nearer_than_a_float32_decomposition() -> None:
    for whole in (matrix(200, 200), matrix(500, 200), 1e-40 * matrix(300, 160)):
        found = refined(whole, 20)
        assert found is not None
        left, values, right = torch.linalg.svd(whole, full_matrices=False)
        wanted = left[:, :20] @ right[:20]
        narrow, _, other = torch.linalg.svd((whole / values[0]).float(), full_matrices=False)
        off = distance(found.left @ found.right.T, wanted)
        assert off < min(1e-5, distance(narrow[:, :20] @ other[:20], wanted))
        torch.testing.assert_close(found.values, values[:21], rtol=1e-9, atol=0)
        turned = leading(whole.T, 20, torch.float32)
        assert distance(turned.right @ turned.left.T, wanted) < 1e-5


def test_what_float32_cannot_refine_is_found_in_float64() -> None:
    equal = torch.ones(160).double()  # but for float32's rounding; those that touch are left out
    low = torch.cat([falling(0, 10), torch.zeros(150).double()])
    for values, leads in ((equal, range(20)), (low, [10])):
        whole, _ = with_values(160, 160, values)
        assert refined(whole, 20) is None
        found = leading(whole, 20, torch.float32)
        assert int((found.values > 0).sum()) in leads
        image = whole @ found.right
        torch.testing.assert_close(image, found.left * found.values, rtol=0, atol=1e-8)
    assert refined(matrix(160, 160), 100) is None  # most directions: all at once is faster
    assert refined(matrix(160, 160), 0) is None


def test_in_single() -> None:
    single, scale = in_single(torch.tensor([[1.0, -4.0], [2.0, 0.0]]).double() * 1e-60)
    assert single.tolist() == [[0.25, -1.0], [0.5, 0.0]]
    assert float(scale) == 4e-60


def test_complement() -> None:
    columns = torch.linalg.qr(matrix(9, 4)).Q
    columns[:, 2] = 0  # a direction that is not there
    rest = complement(columns)
    assert rest.shape == (9, 6)
    torch.testing.assert_close(rest.T @ rest, torch.eye(6).double())
    torch.testing.assert_close(rest.T @ columns, torch.zeros(6, 4).double())
    assert complement(torch.zeros(3, 2).double()).tolist() == torch.eye(3).tolist()
    assert complement(torch.eye(3).double()).shape == (3, 0)


@pytest.mark.parametrize("size", [5, 7, 14, 20])
def test_lower_gram(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svd, "BLOCK", 7)
    whole = matrix(30, size)
    torch.testing.assert_close(lower_gram(whole).tril(), (whole.T @ whole).tril())


def test_some_eigenvectors_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    lower = lower_gram(matrix(50, 30))
    few = top_eigen(lower, 6)
    monkeypatch.setattr(svd, "FEW", 0.0)
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


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("side", [30, 200])
def test_equal_singular_values_are_not_cut_apart(side: int, known: torch.dtype) -> None:
    """Of 12 singular values 3, 2, 2, …, 1 the five leading are cut from a group of nine."""
    turn = torch.linalg.qr(matrix(side, 12)).Q
    values = torch.tensor([3.0, 2.5, *[2.0] * 9, 1.0], dtype=torch.float64)
    whole = turn * values @ torch.linalg.qr(matrix(side - 5, 12, 1)).Q.T
    for count, wanted in ((2, 2), (5, 2), (10, 2), (11, 11), (12, 12)):
        found = leading(whole, count, known)
        kept = found.left * found.values @ found.right.T
        torch.testing.assert_close(
            found.values, torch.cat([values[:wanted], torch.zeros(count - wanted)]).double()
        )
        every = torch.linalg.svd(whole)
        again = every.U[:, :wanted] * every.S[:wanted] @ every.Vh[:wanted]
        torch.testing.assert_close(kept, again, rtol=1e-6, atol=1e-6)
        assert not found.left[:, wanted:].any()
        assert not found.right[:, wanted:].any()
