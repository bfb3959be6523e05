"""Rates of this machine: ranges where something, or nothing, is known; damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.planning.rates import OTHER, SAME, UNKNOWN, Rates, Span


def test_nothing_is_known_at_first(tmp_path: Path) -> None:
    span = Rates(tmp_path, "cpu").span("start")
    assert (span.low, span.high, span.guessed) == (*UNKNOWN["start"], True)
    assert "nothing like it was measured on this machine yet" in str(span)


def test_a_rate_is_kept_and_narrows_the_range(tmp_path: Path) -> None:
    Rates(tmp_path, "cpu").keep("evaluate", 6.0, 3, "a")
    rates = Rates(tmp_path, "cpu")
    assert rates.span("evaluate", "a") == Span(2 * SAME[0], 2 * SAME[1])
    assert rates.span("evaluate", "b") == Span(2 * OTHER[0], 2 * OTHER[1])
    rates.keep("evaluate", 12.0, 3, "a")  # 4 s now, 2 s before
    assert Rates(tmp_path, "cpu").span("evaluate", "a") == Span(3 * SAME[0], 3 * SAME[1])
    assert Rates(tmp_path, "cuda").span("evaluate", "a").guessed


def test_what_was_not_done_has_no_rate(tmp_path: Path) -> None:
    rates = Rates(tmp_path, "cpu")
    rates.keep("prepare", 3.0, 0)
    rates.keep("prepare", 0.0, 3)
    assert rates.span("prepare").guessed


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"start": 3}', b"\xff"])
def test_a_damaged_file_says_nothing_and_is_replaced(content: bytes, tmp_path: Path) -> None:
    rates = Rates(tmp_path, "cpu")
    rates.file.parent.mkdir()
    rates.file.write_bytes(content)
    rates = Rates(tmp_path, "cpu")
    assert rates.span("start").guessed
    rates.keep("start", 5.0, 1)
    assert Rates(tmp_path, "cpu").span("start") == Span(5 * SAME[0], 5 * SAME[1])


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (Span(3.0, 8.0), "about 3 to 8 s"),
        (Span(40.0, 400.0), "about 40 s to 7 min"),
        (Span(130.0, 140.0), "about 2 min"),
        (Span(4000.0, 30_000.0), "about 65 min to 8.3 h"),
    ],
)
def test_a_range_in_words(span: Span, text: str) -> None:
    assert str(span) == text


def test_sums_and_multiples_remember_what_is_guessed() -> None:
    known, guessed = Span(1.0, 2.0), Span(10.0, 20.0, guessed=True)
    assert known + guessed * 2 == Span(21.0, 42.0, guessed=True)
    assert known + guessed * 0 == Span(1.0, 2.0)
