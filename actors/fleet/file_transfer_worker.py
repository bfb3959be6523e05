"""A file of this node, a piece at a time: what the driver's node runs for nodes that lack it.

Imports neither torch nor `fusion` when loaded, for the reason `preprocess.py` gives.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray


def piece(path: str, start: int, size: int) -> tuple[int, NDArray[np.uint8]]:
    """(bytes of the whole file, at most `size` of them from `start` on).

    An array, since Ray hands arrays over without copying them; OSError where it cannot be read.
    """
    with open(path, "rb") as file:
        file.seek(start)
        return os.fstat(file.fileno()).st_size, np.fromfile(file, np.uint8, size)
