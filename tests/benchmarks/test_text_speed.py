"""What the benchmark of text models compares and counts, by hand."""

import pytest
import torch

from benchmarks.text.clocks import Spent, in_turns, ratio
from benchmarks.text.cuts import predicted
from benchmarks.text.evaluation import fitted, same


def test_written_rows_are_their_answers():
    wanted = torch.tensor([[5, 1, -1], [6, 7, 1], [5, 1, -1], [5, 1, -1]])
    written = torch.tensor([[5, 1, 0, 0], [6, 7, 1, 0], [5, 5, 1, 0], [5, 0, 1, 0]])
    assert same(written, wanted).tolist() == [True, True, False, False]
    assert same(written[:, :2], wanted).tolist() == [True, False, False, False]


def test_rows_are_padded_to_a_length_or_cut_to_their_longest():
    ids = torch.tensor([[4, 5, 1, 0], [4, 1, 0, 0]])
    mask = ids > 0
    assert fitted(ids, mask, 6).tolist() == [[4, 5, 1, 0, 0, 0], [4, 1, 0, 0, 0, 0]]
    assert fitted(ids, mask, None).tolist() == [[4, 5, 1], [4, 1, 0]]


def test_works_take_turns_and_the_order_is_reversed():
    calls = []
    works = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    spent = in_turns(works, 2)
    assert "".join(calls) == "ab" + "ab" + "ba"
    assert [len(each.cpu) for each in spent.values()] == [2, 2]


def test_a_ratio_is_of_medians_of_cpu_seconds():
    row = ratio("x", Spent([6.0, 4.0, 9.0], [1.0]), Spent([2.0, 1.0, 7.0], [2.0]), "≥ 3")
    assert row.value == 3.0
    assert row.how.startswith("minima 4, wall 0.5;")


def test_work_of_shards():
    assert predicted([0.0, 1.0, 1.0, 2.0], [(0, 2), (2, 4)]) == pytest.approx([0.25, 0.75])
