"""Trims by hand, against TIES, and from shards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fusion.methods.sparse.ties import ties
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.sparsify import (
    Trim,
    TrimThresholds,
    elected,
    largest_of_rows,
    trim_survey,
    trimmed,
)
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import vectors_of
from tests.fusion.laws import assert_same_bits, copied, toy

A = [0.10, -0.50, 0.30, 0.02, -0.40, 0.05, 0.20, -0.01, 0.60, -0.03]
B = [-0.20, -0.10, 0.35, -0.45, 0.40, 0.0, 0.15, 0.25, -0.05, 0.07]


def whole(vectors: TaskVectors, trim: Trim) -> TaskVectors:
    return trimmed(vectors, trim, run_surveys([trim_survey(vectors, trim)]))


def rows_of(vectors: TaskVectors) -> list[list[float]]:
    return [[round(v, 6) for v in row] for row in vectors.deltas["w"].tolist()]


def test_nothing_is_nothing() -> None:
    vectors = toy()
    assert Trim().nothing
    assert whole(vectors, Trim()) is vectors
    for trim in (Trim(0.5), Trim(elect=True), Trim(dtype="float16")):
        assert not trim.nothing


def test_elected_by_hand() -> None:
    # Two of ten survive: -.5 and .6 of A, -.45 and .4 of B. None meet.
    kept = rows_of(whole(vectors_of(A, B), Trim(0.2, elect=True)))
    assert kept == [
        [0, -0.5, 0, 0, 0, 0, 0, 0, 0.6, 0],
        [0, 0, 0, -0.45, 0.4, 0, 0, 0, 0, 0],
    ]
    # Three: at index 4, -.4 meets .4; with no mass there is no sign, and neither stays.
    kept = rows_of(whole(vectors_of(A, B), Trim(0.3, elect=True)))
    assert kept == [
        [0, -0.5, 0, 0, 0, 0, 0, 0, 0.6, 0],
        [0, 0, 0.35, -0.45, 0, 0, 0, 0, 0, 0],
    ]


def test_what_disagrees_with_the_mass_goes() -> None:
    # Masses 3, 3, -6.
    vectors = vectors_of([4.0, 1.0, -1.0], [2.0, -3.0, -2.0], [-3.0, 5.0, -3.0])
    kept = rows_of(whole(vectors, Trim(1.0, elect=True)))
    assert kept == [[4, 1, -1], [2, 0, -2], [0, 5, -3]]


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("schema", ["float32", "mixed"])
def test_the_sum_of_the_elected_is_ties(density: float, schema: str) -> None:
    vectors = toy(schema)
    kept = whole(vectors, Trim(density, elect=True))
    merged = ties(vectors, density=density, merge="sum")
    for name, delta in kept.deltas.items():
        wide = vectors.deltas[name].double()
        base = vectors.base[name].double()
        total = (base + delta.double().sum(0)).to(vectors.base[name].dtype)
        torch.testing.assert_close(total, merged[name])
        assert bool(((delta == 0) | (delta.double() == wide)).all())  # kept whole, or gone


def test_the_cut_of_shards_is_that_of_the_whole() -> None:
    trim = Trim(0.3, elect=True)
    for schema in ("float32", "mixed"):
        vectors = toy(schema)
        wanted = whole(vectors, trim)
        names = list(vectors.base)
        for deal in ([names[:3], names[3:]], [names[::2], names[1::2]], [[n] for n in names]):
            shards = [vectors.restrict(part) for part in deal]
            cut = run_surveys([trim_survey(shard, trim) for shard in shards])
            assert cut == run_surveys([trim_survey(vectors, trim)])
            found: dict[str, Tensor] = {}
            for shard in shards:
                found |= trimmed(shard, trim, cut).deltas
            assert_same_bits({name: found[name] for name in wanted.deltas}, wanted.deltas)


@pytest.mark.parametrize("trim", [Trim(0.5), Trim(dtype="float16"), Trim(0.5, dtype="bfloat16")])
def test_rows_need_no_survey(trim: Trim) -> None:
    assert run_surveys([trim_survey(toy(), trim)]) is None


def test_rows_by_hand() -> None:
    rows = torch.tensor([[[3.0, -4.0, 1.0, 0.5], [0.0, 0.0, 0.0, -0.1]]])
    assert largest_of_rows(rows, 0.5).tolist() == [[[3, -4, 0, 0], [0, 0, 0, pytest.approx(-0.1)]]]
    assert largest_of_rows(rows, 0.01).tolist() == [
        [[0, -4, 0, 0], [0, 0, 0, pytest.approx(-0.1)]]  # at least one
    ]
    assert largest_of_rows(torch.tensor([[[1.0, -1.0, 1.0, 0.5]]]), 0.5).tolist() == [
        [[1, -1, 1, 0]]  # what ties with the last is kept too
    ]
    assert largest_of_rows(torch.ones(1, 1, 10), 0.3).shape == (1, 1, 10)


@pytest.mark.parametrize(("size", "density"), [(10, 0.3), (100, 0.57), (7, 0.5), (9, 1.0)])
def test_how_many_of_a_row_are_kept(size: int, density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(2, 3, size, generator=generator)
    kept = largest_of_rows(delta, density)
    wanted = math.floor(size * density + 1e-6)
    assert (kept != 0).sum(-1).tolist() == [[wanted] * 3] * 2
    dropped = torch.where(kept == 0, delta, torch.zeros(())).abs().amax(-1)
    least = torch.where(kept != 0, kept.abs(), torch.full((), math.inf)).amin(-1)
    assert bool((dropped < least).all())
    assert bool(((kept == delta) | (kept == 0)).all())


def test_only_matrices_are_cut_by_rows() -> None:
    vectors = toy("float32")
    kept = whole(vectors, Trim(0.4))
    for name, delta in vectors.deltas.items():
        if delta.ndim == 3:
            assert torch.equal(kept.deltas[name], largest_of_rows(delta, 0.4)), name
            assert not torch.equal(kept.deltas[name], delta), name
        else:
            assert torch.equal(kept.deltas[name], delta), name


@pytest.mark.parametrize("trim", [Trim(dtype="bfloat16"), Trim(0.5, dtype="float16")])
def test_rounding_spares_doubles(trim: Trim) -> None:
    vectors = toy("mixed")
    exact = whole(vectors, Trim(trim.density))
    kinds = set()
    for name, delta in whole(vectors, trim).deltas.items():
        wanted = exact.deltas[name]
        if wanted.dtype == torch.float64:
            assert torch.equal(delta, wanted)
        else:
            assert torch.equal(delta, wanted.to(getattr(torch, trim.dtype)))
        kinds.add(delta.dtype)
    assert kinds == {torch.float64, getattr(torch, trim.dtype)}


@pytest.mark.parametrize("trim", [Trim(0.3), Trim(0.3, elect=True), Trim(0.3, True, "bfloat16")])
def test_what_is_given_is_not_touched(trim: Trim) -> None:
    vectors = toy("mixed")
    base, deltas = copied(vectors.base), copied(vectors.deltas)
    kept = whole(vectors, trim)
    assert kept.base is vectors.base
    assert kept.groups == vectors.groups
    assert list(kept.deltas) == list(deltas)
    assert_same_bits(vectors.base, base)
    assert_same_bits(vectors.deltas, deltas)


@pytest.mark.parametrize("step", [1, 7, 64])
def test_chunks_do_not_show(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    delta = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(1))
    cut = TrimThresholds((0.5, 0.1, 1.0))
    wanted = elected(delta, cut)
    monkeypatch.setattr("fusion.task_vectors.sparsify.CHUNK", step)
    assert torch.equal(elected(delta, cut), wanted)
    strided = delta.transpose(1, 2)
    assert torch.equal(elected(strided, cut), wanted.transpose(1, 2))
