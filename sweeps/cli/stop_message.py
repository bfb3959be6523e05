"""Messages of a command that was stopped: what is kept, and which command resumes it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from sweeps.console import redact, signals
from sweeps.console.escape import Screen
from sweeps.console.terminal import forgiving

BEGINNINGS = ("--fresh", "--resume", "--extend")


@contextmanager
def stoppable(kept: str, go_on: Callable[[bool], str]) -> Iterator[None]:
    """Context of a command that may take hours: it can be stopped, and its terminal may go away.

    Args:
        kept: what is kept of what it has done.
        go_on: returns the command that continues, given whether anything of the run is on disk.
    """
    with forgiving():
        try:
            yield
        except KeyboardInterrupt:
            console = Screen()
            console.print(f"interrupted; {kept}. Go on with:")
            console.print(go_on(signals.has_begun()), soft_wrap=True, markup=False)
            raise typer.Exit(130) from None


def given() -> str:
    """The command line, quoted so that it can be run again."""
    return redact.command(["sweeps", *sys.argv[1:]])


def resuming(command: str) -> str:
    """The command that resumes a sweep.

    >>> resuming("sweeps run a.yaml --fresh")
    'sweeps run a.yaml --resume'
    """
    words = [word for word in shlex.split(command) if word not in BEGINNINGS]
    return shlex.join([*words, "--resume"])


def going_on(begun: bool) -> str:
    """The command that resumes the sweep of this command line.

    One that was to begin anew, or with another spec, and has not: as it was given.
    """
    words = sys.argv[1:]
    anew = not {"--fresh", "--extend"}.isdisjoint(words) or "quickstart" in words[:1]
    return given() if anew and not begun else resuming(given())
