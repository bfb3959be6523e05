"""What only shows results, beside results that are on disk: its failing fails nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fusion.errors import one_line


@contextmanager
def aside(
    what: str,
    mend: str,
    say: Callable[[str], None],
    stale: Path | None = None,
    done: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Make a page, a picture, a table; where that fails it is said in a line, and no more.

    Args:
        what: for people.
        mend: what makes it.
        say: takes the line.
        stale: a file of an earlier time, which must not pass for the new one.
        done: whether the results are there; until then what fails is raised.
    """
    try:
        yield
    except Exception as error:  # whatever a library of pictures, tables or pages raises
        if not done():
            raise
        if stale is not None:
            with suppress(OSError):
                stale.unlink(missing_ok=True)
        say(f"{what} could not be made: {one_line(error)[:200]}; {mend}")
