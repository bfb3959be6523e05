"""Tip-Adapter against its formula in float64, by hand, and at its limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fusion.logits.cosine_head import logits
from fusion.methods.classifiers.tip_adapter import (
    affinities,
    cache_keys,
    cache_values,
    few_shot,
    tip_adapter,
    tip_logits,
)
from tests.refusals import exactly

N, NK, C, D = 9, 8, 4, 6
DRAW = torch.Generator().manual_seed(0)
Z = torch.randn(N, D, generator=DRAW, dtype=torch.float64)
VIEWS = torch.randn(3, NK, D, generator=DRAW, dtype=torch.float64)
HEAD = 10 * normalize(torch.randn(C, D, generator=DRAW, dtype=torch.float64), dim=-1)
SHOTS = torch.tensor([2, 0, 1, 3, 3, 1, 0, 2])
KEYS = cache_keys(VIEWS)
VALUES = cache_values(SHOTS, C).double()


def test_formula_row_by_row() -> None:
    fused = tip_adapter(Z, HEAD, KEYS, VALUES, alpha=1.7, beta=5.5)
    for n in range(N):
        wanted = [0.0] * C
        for c in range(C):
            wanted[c] = float(torch.cosine_similarity(Z[n], HEAD[c], dim=0) * HEAD[c].norm())
        for k in range(NK):
            near = float(torch.cosine_similarity(Z[n], VIEWS.mean(0)[k], dim=0))
            wanted[int(SHOTS[k])] += 1.7 * math.exp(-5.5 * (1 - near))
        assert fused[n].tolist() == pytest.approx(wanted, rel=1e-12)


def test_by_hand() -> None:
    fused = tip_logits(
        torch.tensor([[10.0, 20.0]]),
        affinities(torch.tensor([[0.0, 2.0]]), torch.eye(2)),
        torch.eye(2),
        alpha=3.0,
        beta=math.log(2),
    )
    assert fused.tolist() == [[11.5, 23.0]]  # 3·exp(−ln 2) and 3·exp(0)


def test_views_are_averaged_before_they_are_normalised() -> None:
    keys = cache_keys(torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]]))
    torch.testing.assert_close(keys, torch.tensor([[3.0, 1.0]]) / math.sqrt(10))
    torch.testing.assert_close(cache_keys(VIEWS[:1]), normalize(VIEWS[0], dim=-1))


def test_half_precision_is_summed_in_float32() -> None:
    keys = cache_keys(VIEWS.half())
    assert keys.dtype == torch.float32
    torch.testing.assert_close(keys.double(), KEYS, atol=2e-3, rtol=0)
    assert tip_adapter(Z.half(), HEAD.half(), keys, VALUES.half()).dtype == torch.float32


def test_no_alpha_is_zero_shot_to_the_bit() -> None:
    for dtype in (torch.float32, torch.float64):
        z, head = Z.to(dtype), HEAD.to(dtype)
        fused = tip_adapter(z, head, KEYS.to(dtype), VALUES.to(dtype), alpha=0)
        assert torch.equal(fused, logits(z, head))


def test_endless_beta_leaves_votes_of_exact_matches_only() -> None:
    queries = torch.cat([KEYS[:2], KEYS[3:4] * 7, Z[:3]])
    affinity = affinities(queries, KEYS).clamp(max=1)
    affinity = torch.where(affinity > 1 - 1e-12, 1.0, affinity)  # an exact match is exactly 1
    zero_shot = torch.zeros(6, C, dtype=torch.float64)
    fused = tip_logits(zero_shot, affinity, VALUES, alpha=2.0, beta=1e9)
    wanted = torch.zeros(6, C, dtype=torch.float64)
    for row, key in enumerate((0, 1, 3)):
        wanted[row, SHOTS[key]] = 2
    assert torch.equal(fused, wanted)


def test_one_shot_a_class_and_huge_alpha_is_the_nearest_prototype() -> None:
    keys = cache_keys(VIEWS[:, :C])
    order = torch.tensor([3, 1, 0, 2])
    fused = tip_adapter(Z, HEAD, keys, cache_values(order, C), alpha=1e9, beta=3.0)
    nearest = torch.cosine_similarity(Z[:, None], keys[None], dim=-1).argmax(1)
    assert torch.equal(fused.argmax(1), order[nearest])
    assert not torch.equal(fused.argmax(1), logits(Z, HEAD).argmax(1))


def test_sampling_is_by_class_without_replacement_and_by_seed() -> None:
    labels = torch.randint(5, (200,), generator=torch.Generator().manual_seed(1))
    rows = few_shot(labels, 16, seed=1)
    assert labels[rows].tolist() == [c for c in range(5) for _ in range(16)]
    assert len(set(rows.tolist())) == 80
    assert torch.equal(rows, few_shot(labels, 16, seed=1))
    assert not torch.equal(rows, few_shot(labels, 16, seed=2))
    assert torch.equal(rows.view(5, 16)[:, :4].flatten(), few_shot(labels, 4, seed=1))


def test_a_class_is_drawn_alike_whatever_the_others_have() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
    more = torch.cat([labels, torch.ones(50, dtype=torch.int64)])
    assert torch.equal(few_shot(labels, 3, 5)[:3], few_shot(more, 3, 5)[:3])


def test_a_short_class_is_drawn_from_with_replacement() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    rows = few_shot(labels, 4, seed=0)
    assert set(rows[:4].tolist()) <= {0, 1}
    assert sorted(rows[4:].tolist()) == [2, 3, 4, 5]


def test_values_are_one_hot() -> None:
    assert VALUES.sum(1).tolist() == [1.0] * NK
    assert VALUES.argmax(1).tolist() == SHOTS.tolist()


@pytest.mark.parametrize(
    ("labels", "shots", "classes", "message"),
    [
        ([0, 1], 0, None, "shots: 0; 1 or more needed"),
        ([], 1, None, "labels: no rows; 1 or more needed"),
        ([0, 5], 1, 3, "labels: row 1: class 5; 0 to 2 allowed"),
    ],
)
def test_wrong_draws_are_exactly(
    labels: list[int], shots: int, classes: int | None, message: str
) -> None:
    with exactly(message):
        few_shot(torch.tensor(labels, dtype=torch.int64), shots, 0, classes)


def test_a_class_without_a_row_has_no_key_and_no_vote() -> None:
    labels = torch.tensor([0, 2, 2, 3])
    rows = few_shot(labels, 2, seed=0, classes=5)
    assert labels[rows].tolist() == [0, 0, 2, 2, 3, 3]
    values = cache_values(labels[rows], 5)
    assert values.sum(0).tolist() == [2, 0, 2, 2, 0]


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (torch.ones(2, 3), "views: [2, 3]; [E, NK, D] with 1 view or more needed"),
        (torch.ones(0, 2, 3), "views: [0, 2, 3]; [E, NK, D] with 1 view or more needed"),
        (
            torch.tensor([[[1.0, math.inf]]]),
            "views: row 0: NaN or infinity; finite numbers needed",
        ),
        (
            torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]]),
            "views: their mean: row 0: of no length; it cannot be normalised",
        ),
    ],
)
def test_wrong_views_are_exactly(views: Tensor, message: str) -> None:
    with exactly(message):
        cache_keys(views)


def test_wrong_planes_are_exactly() -> None:
    zero_shot, near = logits(Z, HEAD), affinities(Z, KEYS)
    with exactly("keys: 5 columns; 6 needed"):
        affinities(Z, KEYS[:, :5])
    with exactly("head: 5 columns; 6 needed"):
        tip_adapter(Z, HEAD[:, :5], KEYS, VALUES)
    with exactly("affinity: 8 rows; 9 needed"):
        tip_logits(zero_shot, near[:8], VALUES)
    with exactly("values: 7 rows; 8 needed"):
        tip_logits(zero_shot, near, VALUES[:7])
    with exactly("values: 3 columns; 4 needed"):
        tip_logits(zero_shot, near, VALUES[:, :3])
    with exactly("queries: row 1: NaN or infinity; finite numbers needed"):
        affinities(Z.index_fill(0, torch.tensor([1]), math.nan), KEYS)
