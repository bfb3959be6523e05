"""Read a file in pieces; the driver's node runs this for nodes that lack the file.

Imports neither torch nor `fusion` at load time, for the reason given in `preprocess.py`.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray


def piece(path: str, start: int, size: int) -> tuple[int, NDArray[np.uint8]]:
    """(size of the file, at most `size` of its bytes from `start` on).

    The bytes are an array, which Ray passes on without copying. Raises OSError if reading fails.
    """
    with open(path, "rb") as file:
        file.seek(start)
        return os.fstat(file.fileno()).st_size, np.fromfile(file, np.uint8, size)
