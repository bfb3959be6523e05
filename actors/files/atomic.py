"""Files that are there whole or not at all.

Imports no `fusion` (and so no torch) when loaded, for the reason `preprocess.py` gives.
"""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

USER_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
"""What a user has to mend: space, quota, permissions."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end; removed where the block fails.

    Safe against a second process that writes the same file: both write their own, the last
    rename wins, and a reader sees one of them whole. Safe against a machine that stops: the
    content is on disk before the name is. Folders are made. The file gets the mode that the
    process's umask says, whatever wrote it.

    Raises:
        InputError: no space, no quota or no permission; the line names the file.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        share(part)
        to_disk(part)
        part.replace(path)
        to_disk(path.parent)
    except OSError as error:
        if error.errno in USER_FAULTS:
            from fusion.errors import InputError

            raise InputError(f"{path}: cannot be written: {os.strerror(error.errno)}") from None
        raise
    finally:
        part.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems of a network cannot do it for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def share(path: Path) -> None:
    """Give a file the mode that the umask says: safetensors writes files for its user alone."""
    path.chmod(0o666 & ~umask())


_LOCK = threading.Lock()


@cache
def umask() -> int:
    """The process's umask; it can only be read by setting it."""
    with _LOCK:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask
