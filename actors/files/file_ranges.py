"""Read byte ranges of files into preallocated buffers.

A mapped file costs a page fault for each 4 KiB page, and half as much again to unmap: four times
the cost of reading the numbers. A read into a buffer that stays in the CPU cache costs one copy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusion.errors import InputError


def stamp_of(descriptor: int) -> tuple[int, int]:
    """Size and time of modification (ns) of an open file."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


@contextmanager
def opened(file: Path, stamp: tuple[int, int], who: str) -> Iterator[int]:
    """Open a file for reading; yields its descriptor.

    Raises:
        InputError: the file cannot be opened, or its `stamp_of` is no longer `stamp`.
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
    """Fill `into` with the bytes from `offset` on; thread-safe, releases Python's lock.

    Raises:
        EOFError: the file is too short.
        OSError: the file cannot be read.
    """
    done = os.preadv(descriptor, [into], offset)
    while done < len(into):  # one call reads at most 2 GiB
        more = os.preadv(descriptor, [into[done:]], offset + done)
        if not more:
            raise EOFError("ends too early")
        done += more
