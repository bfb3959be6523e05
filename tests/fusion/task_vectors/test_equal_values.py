"""Sums that the order of the experts does not change, and methods that decide by them."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.methods.sparse.tall_mask import consensus
from fusion.methods.sparse.trust_region import conflict
from fusion.registry import METHODS
from fusion.task_vectors.equal_values import elected_sign, exact_sum
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.sparsify import Trim, trim_survey, trimmed
from tests.fusion.draws import drawn, vectors_of

TINY = 2.0**-25
"""Added to 1 in float32, it is lost."""


def few(tasks: int = 4, size: int = 500, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of bfloat16's values, most of them far from each other in size."""
    sizes = drawn(tasks, size, dtype=torch.float32).mul(3).round().clamp(-3, 3)
    return (sizes.sign() * (0.1 * 20.0 ** sizes.abs()).bfloat16()).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_sum_does_not_depend_on_the_order(dtype: torch.dtype) -> None:
    rows = few(dtype=dtype)
    rows[0, ::7], rows[1, ::7], rows[2, ::7], rows[3, ::7] = 1.0, TINY, -1.0, 0.0
    wanted = torch.tensor([math.fsum(column) for column in rows.T.tolist()], dtype=torch.float64)
    assert exact_sum(rows).tolist() == wanted.tolist()
    assert elected_sign(rows).tolist() == wanted.sign().tolist()
    assert elected_sign(rows).dtype == dtype
    assert rows.sum(0).sign().tolist() != wanted.sign().tolist() or dtype == torch.float64
    for order in permutations(range(4)):
        assert torch.equal(exact_sum(rows[list(order)]), exact_sum(rows))


def test_float64_is_added_from_below() -> None:
    rows = drawn(6, 1000, dtype=torch.float64)
    rows[3:] = -rows[:3]
    sums = {tuple(exact_sum(rows[torch.randperm(6)]).tolist()) for _ in range(10)}
    assert len(sums) == 1
    assert len({tuple(rows[torch.randperm(6)].sum(0).tolist()) for _ in range(10)}) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conflict_does_not_depend_on_the_order(dtype: torch.dtype) -> None:
    rows = few(dtype=dtype)
    for order in permutations(range(4)):
        assert torch.equal(conflict(rows[list(order)]), conflict(rows))


SIGNS: dict[str, dict[str, Any]] = {
    "ties": {"density": 1.0},
    "breadcrumbs_ties": {"density": 1.0, "gamma": 0.0},
    "della": {"density": 1.0, "scale": 1.0},
    "sce": {"density": 1.0},
}


@pytest.mark.parametrize("name", SIGNS)
def test_a_sign_is_elected_by_what_is_left_of_large_entries(name: str) -> None:
    """1 + 2⁻²⁵ − 1 > 0, whatever the order; in float32 it is 0 in two orders of three."""
    for order in permutations([[1.0], [TINY], [-1.0]]):
        assert METHODS[name].merge(vectors_of(*order), **SIGNS[name])["w"].item() > 0.4


def test_entries_that_agree_with_it_are_kept() -> None:
    """Of AdaMerging++'s trim."""
    for order in permutations([1.0, TINY, -1.0]):
        vectors, trim = vectors_of(*([each] for each in order)), Trim(1.0, elect=True)
        kept = trimmed(vectors, trim, run_surveys([trim_survey(vectors, trim)]))
        assert kept.deltas["w"].flatten().tolist() == [max(each, 0.0) for each in order]


def test_masks_compare_what_the_others_leave() -> None:
    """At κ = 1: |1| ≥ |2⁻²⁵ − 1|, but not |−1| ≥ |1 + 2⁻²⁵|, which float32 cannot tell from 1."""
    for order in permutations([[1.0], [TINY], [-1.0]]):
        for least, kept in ((2, True), (3, False)):
            found = consensus(vectors_of(*order), threshold=1.0, least=least, scale=1.0)
            assert (found["w"].item() == TINY) == kept
