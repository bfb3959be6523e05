"""How the program ends: one line for each error, and an exit status.

Exit status 1 is left to commands that end with failed trials; no exception leads to it.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup

from fusion.errors import InputError, one_line
from sweeps.console.printable import printable
from sweeps.console.terminal import reopen_closed

REFUSED = 2
BUG = os.EX_SOFTWARE
INTERRUPTED = 130
NO_READER = 141
"""128 + SIGPIPE: what reads the output is gone."""

LONGEST = 500
"""Characters of an unforeseen error's message."""


class Raised(Exception):
    """Wrapper that carries an error past typer, which would end with status 1 for some kinds."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(type(error)))
        self.error = error


class Commands(TyperGroup):
    """Group of all commands; errors of a command reach `main` unchanged."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (OSError, EOFError) as error:
            raise Raised(error) from error


@dataclass(frozen=True)
class Ending:
    """Lines for the error stream, and the exit status."""

    lines: tuple[str, ...]
    status: int


def guarded(program: Callable[[], object]) -> None:
    """Run the program; errors are printed as lines and end the process with a status.

    `--debug` is removed from the command line, at any place; with it, tracebacks are shown.
    """
    reopen_closed()
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    with suppress(AttributeError):  # a stream of a test, say, has none
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        try:
            program()
        finally:
            sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:  # the last boundary: no traceback passes unasked
        found = error.error if isinstance(error, Raised) else error
        ending = end(found)
        with suppress(OSError):  # the error stream is closed, too
            if debug:
                typer.echo(printable("".join(traceback.format_exception(found)), "\n\t"), err=True)
            for line in ending.lines:
                typer.echo(line, err=True)
        sys.exit(ending.status)


def end(error: BaseException) -> Ending:
    """Lines and exit status for an error."""
    error = source(error)
    if isinstance(error, InputError):
        lines = getattr(error, "lines", None) or [text_of(error)]
        return Ending(tuple(printable(line) for line in lines), REFUSED)
    if isinstance(error, KeyboardInterrupt):
        return Ending((), INTERRUPTED)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or os.getcwd()
        return Ending((printable(f"{where}: no space left on the disk"),), REFUSED)
    if isinstance(error, BrokenPipeError) and unread():
        silence()
        return Ending((), NO_READER)
    kind, said = type(error).__name__, text_of(error)[:LONGEST]
    about = kind if said in (kind, "") else f"{kind}: {said}"
    if isinstance(error, MemoryError):
        about = f"{about}: not enough memory on this machine"
    return Ending((f"{printable(about)} (this is a bug; --debug shows the traceback)",), BUG)


def source(error: BaseException) -> BaseException:
    """The original error of a worker, or of one of several tasks."""
    for inner in inner_errors(error):
        return source(inner)
    return error


def inner_errors(error: BaseException) -> Iterator[BaseException]:
    """Errors inside an error: those of a group, wrong input first; the cause of one of Ray's."""
    if isinstance(error, BaseExceptionGroup):
        yield from sorted(error.exceptions, key=lambda each: not isinstance(each, InputError))
    elif type(error).__module__.partition(".")[0] == "ray":
        cause = getattr(error, "cause", None) or error.__cause__
        if isinstance(cause, BaseException) and cause is not error:
            yield cause


def text_of(error: BaseException) -> str:
    """An error's message in one line; empty if it cannot be made."""
    try:
        return one_line(error)
    except Exception:  # an exception class of a library may fail at its own message
        return ""


def unread() -> bool:
    """Whether the standard output is a pipe without a reader."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False


def silence() -> None:
    """Redirect the standard output to /dev/null: Python flushes it once more at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
