"""Ensembles against their formulas in float64."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from fusion.ensemble import ensemble
from fusion.errors import InputError
from fusion.zeroshot import logits
from tests.fusion.laws import toy_embeddings

Z, HEAD = toy_embeddings()


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [1, 2, 5], [1.0, 0.0, 0.0]])
def test_formulas(weights: Any) -> None:
    shares = torch.tensor(weights or [1, 1, 1], dtype=torch.float64)
    shares = (shares / shares.sum())[:, None, None]
    each = normalize(Z, dim=-1) @ HEAD.T
    wanted = {
        "logits": (shares * each).sum(0),
        "probabilities": (shares * each.softmax(-1)).sum(0).log(),
        "features": normalize((shares * Z).sum(0), dim=-1) @ HEAD.T,
    }
    for average, expected in wanted.items():
        fused = ensemble(Z, HEAD, weights=weights, average=average)  # type: ignore[arg-type]
        torch.testing.assert_close(fused, expected)


def test_one_expert_alone() -> None:
    alone = logits(Z[1], HEAD)
    for average in ("logits", "features"):
        fused = ensemble(Z, HEAD, weights=[0, 1, 0], average=average)  # type: ignore[arg-type]
        torch.testing.assert_close(fused, alone)
    fused = ensemble(Z, HEAD, weights=[0, 1, 0], average="probabilities")
    torch.testing.assert_close(fused, alone.log_softmax(-1))


def test_logits_ignore_the_length_of_embeddings_and_features_do_not() -> None:
    longer = Z * torch.tensor([1.0, 10.0, 1.0])[:, None, None]
    torch.testing.assert_close(ensemble(longer, HEAD), ensemble(Z, HEAD))
    assert not torch.allclose(
        ensemble(longer, HEAD, average="features"), ensemble(Z, HEAD, average="features")
    )


def test_probabilities_sum_to_one() -> None:
    fused = ensemble(Z, HEAD * 100, average="probabilities")
    torch.testing.assert_close(fused.exp().sum(-1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("weights", "average", "message"),
    [
        ([1, 2], "logits", "weights: 2 given; one for each of 3 experts needed"),
        ([1, -1, 0], "logits", "weights: they sum to zero"),
        ([1, 2, float("inf")], "logits", "weights: inf; a finite number needed"),
        ([1, 2, "x"], "logits", "weights: 'x'; a finite number needed"),
        ([2, -1, 1], "probabilities", "weights: negative; probabilities need weights >= 0"),
    ],
)
def test_wrong_weights_are_refused(weights: Any, average: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ensemble(Z, HEAD, weights=weights, average=average)
