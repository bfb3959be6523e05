"""Filters of synthetic rows, by hand."""

from __future__ import annotations

import pytest
import torch

from fusion.errors import InputError
from fusion.logits.row_filters import apart, confident

PROBABILITIES = torch.tensor(
    [[0.6, 0.4], [0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.7, 0.3]]
)
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])


def test_confident_by_hand() -> None:
    kept = confident(PROBABILITIES, LABELS)
    assert kept.tolist() == [True, False, True, True, True, False]  # 1/2 itself is not enough
    assert (
        confident(PROBABILITIES, LABELS, least=0.75).tolist()
        == [False, False, True, True] + [False] * 2
    )
    assert confident(PROBABILITIES, LABELS, least=0.0).all()


def test_the_most_confident_of_a_class_stay_and_ties_go_to_the_first() -> None:
    assert (
        confident(PROBABILITIES, LABELS, most=1).tolist()
        == [False, False, True, True] + [False] * 2
    )
    equal = torch.full((3, 2), 0.5)
    labels = torch.tensor([1, 1, 1])
    assert confident(equal, labels, least=0.1, most=2).tolist() == [True, True, False]
    assert not confident(equal, labels, most=2).any()


def test_apart_by_hand() -> None:
    real = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    features = torch.tensor([[5.0, 1.0], [1.0, 5.0], [1.0, 5.0], [1.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    kept = apart(features, labels, real, torch.tensor([0, 1]))
    assert kept.tolist() == [True, False, True, True]  # the last is as near to both
    scaled = apart(7 * features, labels, real, torch.tensor([0, 1]))
    assert scaled.tolist() == kept.tolist()


def test_a_class_without_real_rows_is_kept() -> None:
    features, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([2, 0])
    kept = apart(features, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert kept.tolist() == [True, True]
    kept = apart(features, labels, torch.eye(2), torch.tensor([1, 0]))
    assert kept.tolist() == [True, False]


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"probabilities: 6 rows; labels \(5,\)"):
        confident(PROBABILITIES, LABELS[1:])
    with pytest.raises(InputError, match="labels up to 1; 1 classes"):
        confident(PROBABILITIES[:, :1], LABELS)
    with pytest.raises(InputError, match=r"real rows \(1, 3\); synthetic rows \(6, 2\)"):
        apart(PROBABILITIES, LABELS, torch.zeros(1, 3), torch.tensor([0]))
