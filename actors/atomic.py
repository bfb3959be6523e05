"""Files that are there whole or not at all.

Imports no `fusion` (and so no torch) when loaded, for the reason `imaging.py` gives.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
"""What a user has to mend: space, quota, permissions."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end; removed where the block fails.

    Safe against a second process that writes the same file: both write their own, the last
    rename wins, and a reader sees one of them whole. Folders are made.

    Raises:
        InputError: no space, no quota or no permission; the line names the file.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        if error.errno in USER_FAULTS:
            from fusion.errors import InputError

            raise InputError(f"{path}: cannot be written: {os.strerror(error.errno)}") from None
        raise
    finally:
        part.unlink(missing_ok=True)
