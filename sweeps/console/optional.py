"""Optional outputs (pages, plots, tables): a failure is reported in one line and ends nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fusion.errors import one_line

RESUMED = "--resume makes it"
"""How a user makes a file that is missing."""


@contextmanager
def aside(
    what: str,
    mend: str,
    say: Callable[[str], None],
    stale: Path | None = None,
    done: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Run a block that makes a page, plot or table; report an exception instead of raising it.

    Args:
        what: name of the output, which begins the line.
        mend: how the user can make it later; ends the line.
        say: called with the line.
        stale: file of an earlier run; it is deleted on failure, so that it is not mistaken for a
        new one. done: whether the results are on disk; until then exceptions are raised.
    """
    try:
        yield
    except Exception as error:  # plotting, table and template libraries raise many types
        if not done():
            raise
        if stale is not None:
            with suppress(OSError):
                stale.unlink(missing_ok=True)
        say(f"{what} could not be made: {one_line(error)[:200]}; {mend}")
