"""Texts token by token: which are answers with blanks aside, and when a row is given up."""

from __future__ import annotations

import pytest
import torch

from actors.data.text.written_answers import judged, stripped, texts_of
from fusion.logits.head import AnswerHead

BLANK, DOT = 3, 4
HEAD = AnswerHead(torch.tensor([[5, 6, 1], [7, 1, -1], [3, 8, 1]]), frozenset({BLANK, DOT}))


def test_answers_are_known_without_their_end_and_blanks():
    assert texts_of(HEAD) == {(5, 6): 0, (7,): 1, (8,): 2}
    assert stripped([3, 4, 5, 3, 6, 4], HEAD.blanks) == (5, 3, 6)
    assert stripped([3, 4], HEAD.blanks) == ()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ([5], None),
        ([5, 6], None),
        ([5, 6, 1], 0),
        ([3, 5, 6, 4, 3, 1], 0),
        ([3, 3], None),
        ([8], None),
        ([8, 4, 1], 2),
        ([7, 4], None),
        ([7, 4, 5], -1),  # goes on after its end
        ([5, 3], -1),  # a blank inside
        ([9], -1),
        ([1], -1),
        ([5, 1], -1),  # ends too early
    ],
)
def test_texts(text, wanted):
    assert judged(text, texts_of(HEAD), HEAD) == wanted
