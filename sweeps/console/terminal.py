"""Standard streams that ignore a closed terminal or pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


def reopen_closed() -> None:
    """Open /dev/null in place of standard streams that were closed when the program started.

    Otherwise `sys.stdout` is None, and the next file that is opened has the number of the closed
    stream: what a library writes to standard output would go into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115, until the end


class Forgiving:
    """Text stream that drops its output once the reader is gone.

    A closed terminal (EIO) or pipe (EPIPE) must not end a sweep.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """As `TextIO.write`."""
        try:
            return self.stream.write(text)
        except OSError:
            self.forget()
            return len(text)

    def writelines(self, lines: Any) -> None:
        """As `TextIO.writelines`."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """As `TextIO.flush`."""
        try:
            self.stream.flush()
        except OSError:
            self.forget()

    def forget(self) -> None:
        """Redirect the stream to /dev/null: Python flushes it once more at exit."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


@contextmanager
def forgiving() -> Iterator[None]:
    """Replace `sys.stdout` and `sys.stderr` by forgiving streams in this block."""
    before = sys.stdout, sys.stderr
    wrapped = [Forgiving(each) if each else each for each in before]
    sys.stdout, sys.stderr = wrapped
    try:
        yield
    finally:
        for each in wrapped:
            if each:
                each.flush()
        sys.stdout, sys.stderr = before
