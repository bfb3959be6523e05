"""Escape control characters in text and redact secrets."""

from __future__ import annotations

from sweeps.console import redact


def printable(text: str, kept: str = "") -> str:
    r"""Text without secrets, in which every unprintable character is written as an escape.

    Args:
        text: any text.
        kept: characters that are not escaped.

    >>> printable("a\x1b[31m\ud800 ü\n"), printable("a\n", "\n")
    ('a\\x1b[31m\\ud800 ü\\n', 'a\n')
    """
    shown = redact.text(text)
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in shown)
