"""What a mistake of the user must end in: an `InputError` of one line."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from fusion.errors import InputError


@contextmanager
def one_line(*parts: str, start: str = "", end: str = "") -> Iterator[list[str]]:
    """Check that the block raises an `InputError` of one line with all of `parts` in it.

    Args:
        parts: texts of the line.
        start: how it begins.
        end: how it ends.

    Yields:
        A list that holds the line when the block has ended.
    """
    lines: list[str] = []
    with pytest.raises(InputError) as caught:
        yield lines
    line = str(caught.value)
    assert "\n" not in line, line
    assert line.startswith(start), line
    assert line.endswith(end), line
    for part in parts:
        assert part in line, line
    lines.append(line)


def exactly(line: str) -> AbstractContextManager[object]:
    """Check that the block raises an `InputError` with exactly this line."""
    return pytest.raises(InputError, match=f"^{re.escape(line)}$")
