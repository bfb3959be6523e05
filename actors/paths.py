"""Paths that are built from a name which was read from a file: they stay inside their folder."""

from __future__ import annotations

from pathlib import Path

from fusion.errors import InputError


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
    plain = (
        bool(name)
        and not name.startswith(".")
        and "/" not in name
        and "\\" not in name
        and name.isprintable()
        and len(name.encode(errors="surrogatepass")) <= 255
    )
    if not plain:
        raise InputError(
            f"{where}: {name[:80]!r}: a plain name needed: no separators, no leading dot, at most"
            " 255 bytes"
        )
    return folder / name
