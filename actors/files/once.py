"""What several processes share is made by one of them, while the others wait.

Imports no `fusion` (and so no torch) when loaded, for the reason `preprocess.py` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

PATIENT = 1.0
"""Seconds of waiting that need no word."""

PATIENCE = 900.0
"""Seconds after which waiting ends: an embedded pool takes a minute, a base longer."""


@contextmanager
def alone(
    path: Path, say: Callable[[str], None] = lambda line: None, patience: float = PATIENCE
) -> Iterator[None]:
    """Nobody else makes `path` while this block runs; who enters looks whether it is there.

    The lock is the kernel's, on `.<name>.lock` beside `path`: it goes with its process, however
    that ends. The file stays.

    Args:
        path: a file or folder, there or not.
        say: told where the waiting takes longer than a second.
        patience: seconds to wait.

    Raises:
        InputError: another process holds it for too long; or there can be no such lock.
    """
    from fusion.errors import InputError, one_line

    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file, fallback_to_soft=False)  # a soft one outlives its process
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
    """Wait for a lock."""
    try:
        lock.acquire(timeout=min(PATIENT, patience))
    except Timeout:
        say(f"waiting for another process, which makes {path}")
        lock.acquire(timeout=patience)
