"""Texts that a model writes token by token: which class's answer one is, and which can be none.

Texts are compared as the original's are, whitespace and punctuation at both ends aside: tokens of
nothing else are *blank*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported by processes that need no torch
    from fusion.logits.head import AnswerHead

NO_CLASS = -1
"""Class of a text that is no answer."""


def texts_of(head: AnswerHead) -> dict[tuple[int, ...], int]:
    """Answers without their end and blanks at both ends -> class; the first of equal ones."""
    found: dict[tuple[int, ...], int] = {}
    for at, tokens in enumerate(head.answers.tolist()):
        real = [token for token in tokens if token not in (NO_CLASS, head.end)]
        found.setdefault(stripped(real, head.blanks), at)
    return found


def judged(
    text: Sequence[int], texts: Mapping[tuple[int, ...], int], head: AnswerHead
) -> int | None:
    """Class of a text; −1 where it is none or can be none any more; None: it goes on."""
    if text[-1] == head.end:
        return texts.get(stripped(text[:-1], head.blanks), NO_CLASS)
    begun = leading(text, head.blanks)
    for answer in texts:
        rest = begun[len(answer) :]
        if answer[: len(begun)] == begun[: len(answer)] and head.blanks.issuperset(rest):
            return None
    return NO_CLASS


def leading(text: Sequence[int], blanks: frozenset[int]) -> tuple[int, ...]:
    """A text without the blank tokens at its beginning."""
    start = next((at for at, token in enumerate(text) if token not in blanks), len(text))
    return tuple(text[start:])


def stripped(text: Sequence[int], blanks: frozenset[int]) -> tuple[int, ...]:
    """A text without the blank tokens at both ends."""
    return leading(leading(text, blanks)[::-1], blanks)[::-1]
