"""Real text sets read off source files: what is a text, its label, and the rows that are chosen."""

import ast

import pytest

from benchmarks.sweeps.text_sets import (
    NAMED,
    SPLITS,
    Sizes,
    Text,
    chosen,
    docstrings,
    messages,
    plain,
    source_split,
)

SOURCE = '''
"""Reads files.

More of it.
"""

class Reader:
    """Reader of
    files."""

    def rows(self, path):
        """Rows of a file."""
        if not path:
            raise ValueError(f"{path!r} is not " "a file")
        raise KeyError("no row %s in %d" % (1, 2))

def count(n):
    raise TypeError("a {} is ".format(n) + "no number")
    raise Own("of no known type")
    raise RuntimeError(n)
    raise
'''


def test_docstrings_are_labelled_by_what_they_describe():
    found = sorted(docstrings(ast.parse(SOURCE)))
    assert found == [
        ("class", "Reader of files."),
        ("function", "Rows of a file."),
        ("module", "Reads files."),
    ]


def test_messages_are_labelled_by_their_exception():
    found = [each for each in messages(ast.parse(SOURCE)) if each[1]]
    assert sorted(found) == [
        ("KeyError", "no row {} in {}"),
        ("TypeError", "a {} is no number"),
        ("ValueError", "{} is not a file"),
    ]


def test_a_package_is_given_away_by_its_name():
    assert NAMED.search("Like `np.where`")
    assert NAMED.search("a PyTorch tensor")
    assert not NAMED.search("A snap of nodes")


def test_texts_are_compared_without_case_digits_and_blanks():
    assert plain("Row 12 of\n A") == plain("row 3  of a")


def test_a_file_is_in_one_split_and_all_splits_have_files():
    found = [source_split(f"p/{number}.py") for number in range(500)]
    shares = [found.count(split) / 500 for split in SPLITS]
    assert shares == pytest.approx([0.64, 0.16, 0.2], abs=0.06)


def rows(label: str, split: str, texts: str) -> list[Text]:
    return [Text(text, label, split) for text in texts.split("|")]


def test_no_text_is_chosen_twice_or_with_two_labels():
    given = [
        *rows("x", "train", "one a|two b|both"), *rows("x", "validation", "One  A|three c"),
        *rows("x", "test", "two B|four d"), *rows("y", "train", "five|six|both"),
        *rows("y", "validation", "seven"), *rows("y", "test", "eight|nine"),
    ]  # fmt: skip
    found = chosen(given, Sizes(2, 1, 1))
    texts = {split: sorted(row.text for row in each) for split, each in found.items()}
    assert texts == {
        "train": ["five", "one a", "six", "two b"],
        "validation": ["seven", "three c"],
        "test": ["eight", "four d"],
    }


def test_few_rows_of_a_file_are_chosen_and_short_ones_are_not():
    texts = [f"a text of place {'x' * at}" for at in range(1, 6)]
    file = [Text(text, "x", "train", "p/f.py") for text in ["too short", *texts]]
    others = [
        Text(f"the text {split} of {label}", label, split)
        for split in SPLITS
        for label in ("x", "y", "z")
    ]
    more = [Text("another text of y", "y", "train"), Text("a third text of y", "y", "train")]
    found = chosen([*file, *others, *more], Sizes(3, 1, 1))
    assert {row.label for row in found["train"]} == {"x", "y"}  # z has one text, and is left out
    assert {row.text for row in found["train"] if row.label == "x"} == {*texts[:3]}
    with pytest.raises(SystemExit, match="fewer than two classes of Sizes"):
        chosen([*file, *others], Sizes(3, 1, 1))
