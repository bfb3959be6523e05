"""Counts of samples on which the winner and others differ, by hand."""

import numpy as np

from sweeps.report.disagreements import (
    CLASSES,
    EXAMPLES,
    confusions,
    drawn_classes,
    examples,
    tables,
)
from sweeps.report.html import html
from sweeps.results.comparison import Comparison, Row
from sweeps.results.examples import Example, Examples


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


def chosen(text: str) -> np.ndarray:
    return np.array([int(digit) for digit in text], np.int32)


PREDICTED = {
    "ties": {"a": chosen("001122"), "b": chosen("0")},
    "experts": {"a": chosen("001100")},
}


def test_classes_that_the_winner_and_the_expert_chose():
    ((task, said, drawn),) = confusions(MADE, PREDICTED, {"a": ["cat", "dog"]})
    assert (task, said) == ("a", "2 of 6 samples get another class")
    cells = {(v["expert"], v["winner"]): v["samples"] for v in drawn["data"]["values"]}
    assert cells == {("cat", "cat"): 2, ("dog", "dog"): 2, ("cat", "2"): 2}  # 2 has no name
    assert confusions(MADE, {"ties": PREDICTED["ties"]}, {}) == []


def test_of_many_classes_those_that_differ_are_drawn():
    theirs = np.arange(100, dtype=np.int32)
    mine = np.where(theirs >= 90, 7, theirs).astype(np.int32)
    shown = drawn_classes(mine, theirs)
    assert len(shown) == CLASSES
    assert {7, *range(90, 100)} <= set(shown)
    ((_, said, drawn),) = confusions(
        MADE, {"ties": {"a": mine}, "experts": {"a": theirs}}, {"a": ["same"] * 100}
    )
    assert said == (
        "10 of 100 samples get another class; the 20 classes with most of them are drawn"
    )
    assert len({v["expert"] for v in drawn["data"]["values"]}) == CLASSES  # alike, and told apart


def test_samples_are_shown_with_their_classes():
    picture = "data:image/jpeg;base64,AAAA"
    kept = Examples(
        "ties", "dare", {"a": ["cat", "dog"]},
        {"a": [Example(3, "first", 0, [0, 1], picture),
               Example(5, "second", 1, [0, 1], "<b>text</b>"),
               Example(6, "second", 1, [], "javascript:alert(1)")]},
    )  # fmt: skip
    page = html(MADE, [], correct=CORRECT, predicted=PREDICTED, examples=kept)
    assert f'<img src="{picture}" alt="sample 3 of a">' in page
    assert "<figcaption>3: <b>cat</b>; cat / dog</figcaption>" in page
    assert "&lt;b&gt;text&lt;/b&gt;" in page
    assert "javascript:alert(1)</blockquote>" in page  # no picture, so no address
    assert "img-src data:; script-src" in page
    assert "Classes that the winner and each task's own expert chose" in page
    other = html(MADE, [], correct=CORRECT, examples=Examples("ties", "slerp", {}, kept.samples))
    assert picture not in other
    assert "img-src data:" not in other
