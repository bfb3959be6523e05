"""Paths that are built from a name which was read from a file: they stay inside their folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from fusion.errors import InputError

LONGEST = 255
"""Bytes of a file's name, on the file systems in use."""


def is_plain(name: str) -> bool:
    """Whether a text is one plain part of a path, anywhere.

    >>> is_plain("svhn"), is_plain("../svhn"), is_plain(".svhn"), is_plain("a\\0b")
    (True, False, False, False)
    """
    return (
        bool(name)
        and not name.startswith(".")
        and "/" not in name
        and "\\" not in name
        and name.isprintable()
        and len(name.encode(errors="surrogatepass")) <= LONGEST
    )


def check_plain(name: str) -> str:
    """`name`, if it is plain; else a fault that pydantic adds field and value to."""
    if not is_plain(name):
        raise ValueError("a plain name needed: no separators, no leading dot, at most 255 bytes")
    return name


Plain = Annotated[str, AfterValidator(check_plain)]
"""The name of a trial, method, task, expert or file: a field of a file that becomes a path."""


def inside(folder: Path, name: str, where: str) -> Path:
    """`folder / name`, for a name that is one plain part of a path.

    Args:
        folder: what the result lies in, directly.
        name: of a task, expert, method, trial or file, as some file gives it.
        where: file and field that gave the name; begins the message.

    Raises:
        InputError: an empty or hidden name, one with a separator or a control character, or one
            longer than 255 bytes.
    """
    if not is_plain(name):
        raise InputError(
            f"{where}: {name[:80]!r}: a plain name needed: no separators, no leading dot, at most"
            " 255 bytes"
        )
    return folder / name


def listed(folder: Path, name: str, where: str, suffixes: Mapping[str, tuple[str, ...]]) -> Path:
    """The path of a file that somebody else's listing names, in a folder or one below it.

    Args:
        folder: what the result lies in.
        name: `file` or `part/file`.
        where: who listed it; begins the message.
        suffixes: part -> suffixes of files allowed; of "", the folder itself, their whole names.

    Raises:
        InputError: another part, another suffix, or a name that is not plain.
    """
    part, _, file = name.rpartition("/")
    place = folder / part if part else folder
    path = inside(place, file, where)
    allowed = suffixes.get(part, ())
    if file not in allowed if not part else not file.endswith(allowed):
        raise InputError(f"{where}: {name[:80]!r}: no file of a sweep")
    return path
