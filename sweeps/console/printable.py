"""Text as one line of printable characters, without secrets."""

from __future__ import annotations

from sweeps.console import redact


def printable(text: str, kept: str = "") -> str:
    r"""The text without secrets, and with all that a terminal would not show as one character
    written out.

    Args:
        text: of any origin.
        kept: characters that stay as they are.

    >>> printable("a\x1b[31m\ud800 ü\n"), printable("a\n", "\n")
    ('a\\x1b[31m\\ud800 ü\\n', 'a\n')
    """
    shown = redact.text(text)
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in shown)
