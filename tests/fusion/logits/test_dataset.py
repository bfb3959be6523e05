"""Rows of the logit plane: what is refused, and which rows are the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.logits.dataset import (
    Labelled,
    check_different_rows,
    check_labels,
    check_matrix,
    unit_rows,
)
from tests.refusals import exactly

F = torch.arange(12.0).view(6, 2) + 1
Y = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (F[0], Y, "fit: features: float32 [2]; a floating-point matrix needed"),
        (F.long(), Y, "fit: features: int64 [6, 2]; a floating-point matrix needed"),
        (F[:0], Y[:0], "fit: features: no rows; 1 or more needed"),
        (F[:, :0], Y, "fit: features: no columns; 1 or more needed"),
        (
            F.masked_fill(F == 6, float("nan")),
            Y,
            "fit: features: row 2: NaN or infinity; finite numbers needed",
        ),
        (F, Y[:5], "fit: labels: 5 for 6 rows; one a row needed"),
        (F, Y.float(), "fit: labels: float32 [6]; int64 [N] needed"),
        (F, Y - 1, "fit: labels: row 0: class -1; 0 or more allowed"),
    ],
)
def test_wrong_rows_are_exactly(features: Tensor, labels: Tensor, message: str) -> None:
    with exactly(message):
        Labelled(features, labels, "fit")


def test_labels_are_held_against_the_number_of_classes() -> None:
    check_labels("labels", Y, 6, 3)
    with exactly("labels: row 2: class 2; 0 to 1 allowed"):
        check_labels("labels", Y, 6, 2)


def test_widths_are_compared() -> None:
    with exactly("head: 2 columns; 5 needed"):
        check_matrix("head", F, width=5)
    with exactly("head: 6 rows; 7 needed"):
        check_matrix("head", F, rows=7, width=2)


def test_directions() -> None:
    torch.testing.assert_close(
        unit_rows("z", torch.tensor([[3.0, 4.0]]).half()), torch.tensor([[0.6, 0.8]])
    )
    with exactly("z: row 1: of no length; it cannot be normalised"):
        unit_rows("z", torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("fit", "select"),
    [
        (slice(0, 6), slice(0, 6)),
        (slice(0, 4), slice(3, 6)),
        (slice(3, 6), slice(0, 4)),
        (slice(0, 6), slice(2, 3)),
        (slice(0, 6, 2), slice(1, 6, 3)),  # 0 2 4 and 1 4
    ],
)
def test_slices_that_share_a_row_are_the_same_rows(fit: slice, select: slice) -> None:
    with exactly(
        "select: rows that fit has too; choosing on what was learned from is not allowed,"
        " other rows needed"
    ):
        check_different_rows(
            Labelled(F[fit], Y[fit], "fit"), Labelled(F[select], Y[select], "select")
        )


@pytest.mark.parametrize(
    ("fit", "select"),
    [(slice(0, 3), slice(3, 6)), (slice(0, 6, 2), slice(1, 6, 2)), (slice(0, 1), slice(1, 2))],
)
def test_slices_without_a_common_row_are_not(fit: slice, select: slice) -> None:
    check_different_rows(Labelled(F[fit], Y[fit], "fit"), Labelled(F[select], Y[select], "select"))


def test_one_object_and_a_copy_are_the_same_rows() -> None:
    rows = Labelled(F, Y)
    for other in (rows, Labelled(F.clone(), Y.clone())):
        with pytest.raises(InputError, match="choosing on what was learned from"):
            check_different_rows(rows, other)
    check_different_rows(rows, Labelled(F.clone() + 1, Y))
