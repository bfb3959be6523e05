"""Text corruptions: edits by hand, rates, and what a row's text depends on."""

import numpy as np
import pytest

from actors.data.protocol import Corruption
from actors.data.text.corruptions import CORRUPTIONS, DROPPED, NEIGHBOURS, TYPOS, corrupted
from actors.data.text.corruptions import typos as misspell
from actors.data.text.corruptions import word_drop as drop

LONG = "the quick brown fox jumps over a lazy dog and 42 geese , twice " * 200


class Draws:
    """A generator that gives what it was given."""

    def __init__(self, *values: object) -> None:
        self.values = list(values)

    def random(self, shape: object) -> np.ndarray:
        found = np.asarray(self.values.pop(0), dtype=float)
        assert found.shape == (shape if isinstance(shape, tuple) else (shape,))
        return found


def edited(text: str, at: int, edit: float, which: float = 0.0) -> str:
    """A text of which one place is hit, at the lowest severity."""
    hit = np.ones(len(text))
    hit[at] = 0.0
    draws = [hit, np.full(len(text), edit), np.full(len(text), which)]
    return misspell(text, 1, Draws(draws))  # type: ignore[arg-type]


SWAP, DROP, INSERT, REPLACE = 0.1, 0.3, 0.6, 0.9


def test_edits_by_hand():
    assert edited("a cat sat", 2, SWAP) == "a act sat"
    assert edited("a cat sat", 4, SWAP) == "a cta sat"  # the last letter of its word
    assert edited("a cat sat", 3, DROP) == "a ct sat"
    assert edited("a cat sat", 0, DROP) == "a cat sat"  # a word does not disappear
    assert edited("a cat sat", 0, SWAP) == "a cat sat"
    assert edited("a Cat sat", 2, INSERT) == "a CXat sat"
    assert edited("a Cat sat", 2, REPLACE, 0.99) == "a Fat sat"
    assert edited("né !", 1, INSERT) == "néé !"
    for place in (1, 3):  # a blank, and a digit
        assert edited("a 42", place, DROP) == "a 42"


def test_neighbours_touch_on_the_keyboard():
    assert [NEIGHBOURS[key] for key in "qpz"] == ["wa", "ol", "xas"]
    assert all(key in NEIGHBOURS[near] for key, keys in NEIGHBOURS.items() for near in keys)


def test_words_dropped_by_hand():
    draws = [0.05, 0.15, 0.6, 0.7]
    assert drop("a  b\tc d", 1, Draws(draws)) == "b c d"  # type: ignore[arg-type]
    assert drop("a b c d", 2, Draws(draws)) == "c d"  # type: ignore[arg-type]
    assert drop("a b", 5, Draws([0.2, 0.1])) == "a"  # type: ignore[arg-type]


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_rates_are_those_documented(severity):
    letters = "x" * 20_000
    rng = np.random.default_rng(0)
    hit = misspell(letters, severity, rng)
    # A swap of equal letters shows nothing; half of the others change the length.
    expected = TYPOS[severity - 1]
    assert abs(sum(letter != "x" for letter in hit) / 20_000 - expected / 2) < 0.006
    kept = len(drop("word " * 20_000, severity, rng).split()) / 20_000
    assert abs(1 - kept - DROPPED[severity - 1]) < 0.012


def test_a_letter_hit_at_one_severity_is_hit_at_the_next():
    def words(severity: int) -> list[str]:
        return corrupted({"text": LONG}, 3, Corruption("word_drop", severity))["text"].split()

    counts = [len(words(severity)) for severity in (1, 3, 5)]
    assert counts == sorted(counts, reverse=True)
    changed = [
        {at for at, (old, new) in enumerate(zip(LONG.split(), made.split(), strict=True))
         if old != new}
        for made in (
            corrupted({"text": LONG}, 3, Corruption("typos", severity))["text"]
            for severity in (1, 3, 5)
        )
    ]  # fmt: skip
    assert len(changed[0]) < len(changed[1]) < len(changed[2])
    assert len(changed[0] - changed[2]) < 0.05 * len(changed[0])  # a swap may undo another


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_text_depends_on_seed_row_and_column_alone(name):
    row = {"first": LONG, "second": LONG}
    found = corrupted(row, 7, Corruption(name, 3, 1))
    assert found == corrupted(row, 7, Corruption(name, 3, 1))
    assert found["second"] == corrupted({"second": LONG}, 7, Corruption(name, 3, 1))["second"]
    others = [
        found["second"],
        corrupted(row, 8, Corruption(name, 3, 1))["first"],
        corrupted(row, 7, Corruption(name, 3, 2))["first"],
        corrupted(row, 7, Corruption(name, 4, 1))["first"],
        LONG,
    ]
    assert found["first"] not in others


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_no_text_becomes_empty(name):
    for number in range(300):
        assert corrupted({"text": " a b "}, number, Corruption(name, 5))["text"].split()
