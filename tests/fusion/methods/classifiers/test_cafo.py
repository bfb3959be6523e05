"""CaFo's fusion against its formula in float64, and at its limits."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from fusion.errors import InputError
from fusion.methods.classifiers.cafo import cafo, over_classes
from fusion.methods.classifiers.tip_adapter import cache_logits

M, N, C = 3, 7, 5
DRAW = torch.Generator().manual_seed(0)
ZERO_SHOT = 4 * torch.randn(N, C, generator=DRAW, dtype=torch.float64)
HEADS = torch.randn(M, N, C, generator=DRAW, dtype=torch.float64)
HEADS[1] = HEADS[1] * 10 + 3


def hat(row: Any, normalisation: str) -> Any:
    if normalisation == "zscore":
        return (row - row.mean()) / row.std(ddof=1)
    if normalisation == "softmax":
        return np.exp(row) / np.exp(row).sum()
    return row / np.linalg.norm(row)


@pytest.mark.parametrize("normalisation", ["zscore", "softmax", "l2"])
@pytest.mark.parametrize("reference", [None, 2])
@pytest.mark.parametrize("compat", [None, "cafo"])
def test_formula_row_by_row(normalisation: Any, reference: int | None, compat: Any) -> None:
    options = {"normalisation": normalisation, "reference": reference, "compat": compat}
    fused = cafo(ZERO_SHOT, HEADS, alpha=0.7, temperature=0.3, **options)
    for n in range(N):
        hats = [hat(HEADS[m, n].numpy(), normalisation) for m in range(M)]
        guide = hat(ZERO_SHOT[n].numpy(), normalisation) if reference is None else hats[reference]
        by = 0.3 * (C if normalisation == "zscore" and compat is None else 1)
        raw = [math.exp(float(h @ guide) / by) for h in hats]
        wanted = ZERO_SHOT[n].numpy() + 0.7 * sum(
            r / sum(raw) * h for r, h in zip(raw, hats, strict=True)
        )
        np.testing.assert_allclose(fused[n].numpy(), wanted, rtol=1e-12)


def test_one_head_is_tip_adapter_on_normalised_logits() -> None:
    cache = cache_logits(torch.rand(N, 8, generator=DRAW).double(), torch.eye(8, C).double(), 2.0)
    centred = cache - cache.mean(1, keepdim=True)
    wanted = ZERO_SHOT + 1.3 * centred / centred.square().sum(1, keepdim=True).div(C - 1).sqrt()
    for temperature in (0.0, 0.1, math.inf):
        fused = cafo(ZERO_SHOT, cache[None], alpha=1.3, temperature=temperature)
        torch.testing.assert_close(fused, wanted)


def test_endless_temperature_is_the_mean() -> None:
    mean = ZERO_SHOT + 2 * over_classes(HEADS, "zscore").mean(0)
    torch.testing.assert_close(cafo(ZERO_SHOT, HEADS, alpha=2, temperature=math.inf), mean)
    torch.testing.assert_close(cafo(ZERO_SHOT, HEADS, alpha=2, temperature=1e9), mean)


def test_no_temperature_picks_one_head_a_row() -> None:
    hats, guide = over_classes(HEADS, "zscore"), over_classes(ZERO_SHOT, "zscore")
    picks = (hats * guide).sum(-1).argmax(0)
    assert len(set(picks.tolist())) > 1
    wanted = ZERO_SHOT + 2 * hats[picks, torch.arange(N)]
    for temperature in (0.0, 5e-324, 1e-9):
        torch.testing.assert_close(cafo(ZERO_SHOT, HEADS, alpha=2, temperature=temperature), wanted)


def test_equal_heads_at_no_temperature_give_the_first() -> None:
    twice = HEADS[:1].expand(2, N, C)
    torch.testing.assert_close(
        cafo(ZERO_SHOT, twice, temperature=0), cafo(ZERO_SHOT, HEADS[:1], temperature=0)
    )


def test_the_released_softmax_is_ours_at_one_over_the_number_of_classes() -> None:
    released = cafo(ZERO_SHOT, HEADS, compat="cafo")
    torch.testing.assert_close(released, cafo(ZERO_SHOT, HEADS, temperature=1 / C))
    assert not torch.allclose(released, cafo(ZERO_SHOT, HEADS))


def test_without_division_many_classes_pick_one_head() -> None:
    zero_shot = torch.randn(200, 1000, generator=DRAW)
    heads = zero_shot + torch.randn(2, 200, 1000, generator=DRAW)
    hats = over_classes(heads, "zscore")

    def largest(compat: Any) -> float:
        fused = cafo(zero_shot, heads, compat=compat) - zero_shot
        # fused = ĉ₂ + w(ĉ₁ − ĉ₂): read w back.
        gap = hats[0] - hats[1]
        w = ((fused - hats[1]) * gap).sum(1) / gap.square().sum(1)
        return float((torch.maximum(w, 1 - w) > 0.99).float().mean())

    assert largest("cafo") > 0.6
    assert largest(None) == 0


@pytest.mark.parametrize(("normalisation", "value"), [("zscore", 0.1), ("l2", 0.0)])
def test_a_head_that_says_nothing_becomes_zeros(normalisation: Any, value: float) -> None:
    flat = torch.full((1, N, C), value, dtype=torch.float64)
    assert torch.equal(cafo(ZERO_SHOT, flat, normalisation=normalisation), ZERO_SHOT)
    assert torch.equal(cafo(flat[0], HEADS, normalisation=normalisation, alpha=0), flat[0])


def test_inputs_are_not_touched() -> None:
    zero_shot, heads = ZERO_SHOT.clone(), HEADS.clone()
    for normalisation in ("zscore", "softmax", "l2"):
        cafo(zero_shot, heads, normalisation=normalisation)  # type: ignore[arg-type]
    assert torch.equal(zero_shot, ZERO_SHOT)
    assert torch.equal(heads, HEADS)


def test_no_alpha_is_zero_shot_and_half_precision_is_widened() -> None:
    assert torch.equal(cafo(ZERO_SHOT, HEADS, alpha=0), ZERO_SHOT)
    assert cafo(ZERO_SHOT.half(), HEADS.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("zero_shot", "heads", "reference", "message"),
    [
        (ZERO_SHOT, HEADS[0], None, "heads: [7, 5]; [M, N, C] with 1 head or more needed"),
        (ZERO_SHOT, HEADS[:0], None, "heads: [0, 7, 5]; [M, N, C] with 1 head or more needed"),
        (ZERO_SHOT, HEADS[:, :6], None, "head 0: 6 rows; 7 needed"),
        (ZERO_SHOT, HEADS[..., :4], None, "head 0: 4 columns; 5 needed"),
        (ZERO_SHOT[:, :1], HEADS[..., :1], None, "zero-shot logits: 1 class; 2 or more needed"),
        (
            ZERO_SHOT,
            HEADS / torch.tensor([1.0, 0.0, 1.0])[:, None, None],
            None,
            "head 1: row 0: NaN or infinity; finite numbers needed",
        ),
        (ZERO_SHOT, HEADS, 3, "reference: 3; 0 to 2 allowed, or none"),
    ],
)
def test_wrong_heads_are_refused(zero_shot: Any, heads: Any, reference: Any, message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message) + "$"):
        cafo(zero_shot, heads, reference=reference)
