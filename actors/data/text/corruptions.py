"""Common text corruptions: typos and dropped words at five severities, seeded for each row.

They change the raw text columns, before the template: its words stay as they are. A text depends on
(seed, number of its row in the source split, column), never on its batch or on other rows. It draws
the same random numbers at all severities, so that only the severity changes: a letter or word that
is hit at one severity is hit at every higher one. No text becomes empty.

The edits of `typos` are those of Belinkov and Bisk, "Synthetic and Natural Noise Both Break Neural
Machine Translation" (2018), and of `nlpaug`; the rates are this project's.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from actors.data.protocol import Corruption

VERSION = "text-shift-1"
"""Raised when a change of this code changes texts."""

KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
WORD = re.compile(r"\S+")

TYPOS = (0.02, 0.05, 0.1, 0.15, 0.2)
"""Severity -> fraction of letters that are hit."""

DROPPED = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Severity -> fraction of words that are dropped."""

Corrupt: TypeAlias = Callable[[str, int, np.random.Generator], str]


def typos(text: str, severity: int, rng: np.random.Generator) -> str:
    """Hit a fraction .02, .05, .10, .15, .20 of letters, each with one of four edits by chance.

    The letter is swapped with the next one of its word (the last one with the one before it),
    dropped, followed by a neighbour on a QWERTY keyboard, or replaced by one. Upper case is kept. A
    letter that is not on the keyboard is its own neighbour. Digits, punctuation and blanks are
    never hit, and a word never disappears.
    """
    hit, edit, which = rng.random((3, len(text)))

    def misspelt(word: re.Match[str]) -> str:
        found: list[str] = []
        letters, at = list(word.group()), word.start()
        skip = False
        for place, letter in enumerate(letters):
            if skip or hit[at + place] >= TYPOS[severity - 1] or not letter.isalpha():
                found += [] if skip else [letter]
                skip = False
                continue
            key = neighbour(letter, which[at + place])
            match int(4 * edit[at + place]):
                case 0 if place + 1 < len(letters):
                    found += [letters[place + 1], letter]
                    skip = True
                case 0:
                    found.insert(max(len(found) - 1, 0), letter)
                case 1:
                    pass
                case 2:
                    found += [letter, key]
                case _:
                    found.append(key)
        return "".join(found) or word.group()

    return WORD.sub(misspelt, text)


def word_drop(text: str, severity: int, rng: np.random.Generator) -> str:
    """Drop a fraction .1, .2, .3, .4, .5 of words; the last one to go stays.

    Words are what blanks separate; the others are joined by one blank each.
    """
    words = text.split()
    if not words:
        return text
    draws = rng.random(len(words))
    limit = min(DROPPED[severity - 1], draws.max())
    return " ".join(word for word, draw in zip(words, draws, strict=True) if draw >= limit)


CORRUPTIONS: Mapping[str, Corrupt] = {each.__name__: each for each in (typos, word_drop)}
"""name -> function(text, severity 1 to 5, generator) -> text."""


def corrupted(row: Mapping[str, str], number: int, corruption: Corruption) -> dict[str, str]:
    """The text columns of a row, corrupted.

    Args:
        row: column -> text.
        number: of the row in its source split.
        corruption: its name is a key of `CORRUPTIONS`.
    """
    function, name = CORRUPTIONS[corruption.name], zlib.crc32(corruption.name.encode())
    return {
        column: function(
            text,
            corruption.severity,
            np.random.default_rng([corruption.seed, number, name, zlib.crc32(column.encode())]),
        )
        for column, text in row.items()
    }


def neighbour(letter: str, draw: float) -> str:
    """A key beside a letter's; `draw` in [0, 1) chooses it.

    >>> [neighbour("g", draw / 6) for draw in range(6)], neighbour("A", 0.0), neighbour("é", 0.5)
    (['f', 'h', 't', 'y', 'v', 'b'], 'S', 'é')
    """
    keys = NEIGHBOURS.get(letter.lower(), letter)
    key = keys[int(draw * len(keys))]
    return key.upper() if letter.isupper() else key


def beside(row: int, at: int) -> str:
    """Keys beside a key: left, right, above, below. Rows are shifted by half a key."""
    places = ((row, at - 1), (row, at + 1), (row - 1, at), (row - 1, at + 1), (row + 1, at - 1),
              (row + 1, at))  # fmt: skip
    return "".join(
        KEYBOARD[line][place]
        for line, place in places
        if 0 <= line < len(KEYBOARD) and 0 <= place < len(KEYBOARD[line])
    )


NEIGHBOURS = {
    key: beside(row, at) for row, keys in enumerate(KEYBOARD) for at, key in enumerate(keys)
}
