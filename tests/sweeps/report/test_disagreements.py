"""Counts of samples on which the winner and others differ, by hand."""

import numpy as np

from sweeps.report.disagreements import EXAMPLES, examples, tables
from sweeps.report.html import html
from sweeps.results.comparison import Comparison, Row


def bits(text: str) -> np.ndarray:
    return np.array([mark == "1" for mark in text])


CORRECT = {
    "ties": {"a": bits("110100"), "b": bits("1")},
    "dare": {"a": bits("100110"), "b": bits("1")},
    "experts": {"a": bits("111111")},
}
ROWS = tuple(
    Row(method, kind, test={"acc/mean": value, "acc/a": value})
    for method, kind, value in (
        ("experts", "reference", 1.0), ("ties", "x", 0.6), ("dare", "x", 0.5), ("slerp", "x", 0.1),
    )
)  # fmt: skip
MADE = Comparison("s", "", "val", ROWS, tasks=("a", "b"))


def test_counts_by_hand():
    expert, runner_up = tables(MADE, CORRECT)
    assert (expert["first"], expert["second"]) == ("ties", "each task's own expert")
    assert [line["task"] for line in expert["lines"]] == ["a"]  # the expert has no samples of b
    assert runner_up["second"] == "dare"
    first = runner_up["lines"][0]
    counts = [first[name] for name in ("n", "both", "only_first", "only_second", "neither")]
    assert counts == [6, 2, 1, 1, 2]
    assert (first["first_examples"], first["second_examples"]) == ("1", "4")


def test_many_examples_are_cut():
    assert examples(np.ones(EXAMPLES + 1, dtype=bool)).endswith("24 …")


def test_no_samples_no_tables():
    assert tables(MADE, {}) == []
    assert "right and wrong" not in html(MADE, [])
    page = html(MADE, [], correct=CORRECT)
    assert "<h3>ties against dare</h3>" in page
    assert "Only ties: 1. Only dare: 4." in page
