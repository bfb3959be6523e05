"""Safe paths: a name read from a file cannot lead out of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from fusion.errors import InputError

LONGEST = 255
"""Most bytes of a file's name on common file systems."""


def is_plain(name: str) -> bool:
    """Whether a text is a safe name of one file or folder on any system.

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
    """Return `name` if it is plain; otherwise raise ValueError for pydantic to report."""
    if not is_plain(name):
        raise ValueError("a plain name needed: no separators, no leading dot, at most 255 bytes")
    return name


Plain = Annotated[str, AfterValidator(check_plain)]
"""Field type for a name that becomes part of a path: a trial, method, task, expert or file."""


def inside(folder: Path, name: str, where: str) -> Path:
    """`folder / name` for a plain name.

    Args:
        folder: folder that directly contains the result.
        name: name of a task, expert, method, trial or file, as a file gives it.
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
    """Path of a file named by a listing of another machine, in a folder or one level below it.

    Args:
        folder: folder that contains the result.
        name: `file` or `part/file`.
        where: origin of the listing; begins the message.
        suffixes: part -> allowed suffixes of files; for "" (the folder itself) allowed full names.

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
