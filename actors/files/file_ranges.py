"""Parts of files read into memory that is there already.

A mapped file costs a page fault wherever its pages are first touched, and half as much again to
unmap: in pages of 4 KiB, four times what reading the numbers costs. A read into a buffer that stays
in cache costs a copy and no fault.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusion.errors import InputError


def stamp_of(descriptor: int) -> tuple[int, int]:
    """An open file's size and time of change."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


@contextmanager
def opened(file: Path, stamp: tuple[int, int], who: str) -> Iterator[int]:
    """A file's descriptor, as long as the file is the one that had this stamp.

    Raises:
        InputError: it changed since, or cannot be opened.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{who}: {file}: {error.strerror}") from None
    try:
        if stamp_of(descriptor) != stamp:
            raise InputError(f"{who}: {file}: changed while in use")
        yield descriptor
    finally:
        os.close(descriptor)


def fill(into: memoryview, descriptor: int, offset: int) -> None:
    """Bytes from `offset` on, as many as `into` holds; thread-safe, and without Python's lock.

    Raises:
        EOFError: the file ends before.
        OSError: it cannot be read.
    """
    done = os.preadv(descriptor, [into], offset)
    while done < len(into):  # one call reads 2 GiB at most
        more = os.preadv(descriptor, [into[done:]], offset + done)
        if not more:
            raise EOFError("ends too early")
        done += more
