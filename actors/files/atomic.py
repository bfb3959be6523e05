"""Atomic file writes: a file appears complete or not at all."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from fusion.errors import InputError

USER_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
"""Errors that the user must fix: disk space, quota, permissions."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` at the end, delete it on failure.

    Two processes may write the same file: each writes its own temporary file, the last rename wins,
    and a reader sees one complete file. After a power loss the name never exists without the
    content. Missing folders are made. The file's mode follows the umask.

    Raises:
        InputError: no disk space, no quota or no permission; the line names the file.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            share(part)
            to_disk(part)
            part.replace(path)
            to_disk(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` that the user must fix into an InputError that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in USER_FAULTS:
            raise InputError(f"{path}: cannot be written: {os.strerror(error.errno)}") from None
        raise


def to_disk(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot fsync folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def share(path: Path) -> None:
    """Set a file's mode by the umask: safetensors makes files readable by their owner only."""
    path.chmod(0o666 & ~umask())


def share_folder(folder: Path) -> None:
    """Set the modes of a folder and of all in it by the umask; links are left as they are.

    Folders made by `tempfile`, and weights that `save_pretrained` wrote, are their owner's only.
    """
    for place, _, names in os.walk(folder):
        Path(place).chmod(0o777 & ~umask())
        for file in (Path(place) / name for name in names):
            if not file.is_symlink():
                share(file)


_LOCK = threading.Lock()


@cache
def umask() -> int:
    """The process's umask, which can only be read by setting it."""
    with _LOCK:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask
