"""File lock for work that one process does while others wait for its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fusion.errors import InputError, one_line

PATIENT = 1.0
"""Seconds of waiting before a line is printed."""

PATIENCE = 900.0
"""Seconds until waiting fails: an embedded pool takes a minute, a base longer."""


@contextmanager
def alone(
    path: Path, say: Callable[[str], None] = lambda line: None, patience: float = PATIENCE
) -> Iterator[None]:
    """Hold the lock of `path` in this block. Check in the block whether `path` already exists.

    It is a kernel lock (flock) on `.<name>.lock` beside `path`; it is released when its process
    ends, even by a kill. The lock file stays.

    Args:
        path: a file or folder, which need not exist.
        say: called with a line after a second of waiting.
        patience: seconds to wait at most.

    Raises:
        InputError: another process holds the lock for too long, or the file system has no locks.
    """
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file, fallback_to_soft=False)  # a soft lock outlives its process
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting(lock, path, say, patience)
    except Timeout:
        raise InputError(
            f"{file}: held by another process for {patience:.0f} s, which makes {path}; wait for"
            f" it, or end it (`fuser -v {file}` names it)"
        ) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(
            f"{file}: cannot be locked: {reason}; a folder that can be written, on a file system"
            " with locks (flock), needed"
        ) from None
    try:
        yield
    finally:
        lock.release()


def waiting(lock: FileLock, path: Path, say: Callable[[str], None], patience: float) -> None:
    """Acquire a lock; print a line after `PATIENT` seconds."""
    try:
        lock.acquire(timeout=min(PATIENT, patience))
    except Timeout:
        say(f"waiting for another process, which makes {path}")
        lock.acquire(timeout=patience)
