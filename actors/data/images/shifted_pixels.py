"""Corrupt the images of a pixel file (a distribution shift) into another pixel file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from actors.data.images.corruptions import corrupt
from actors.data.images.pixel_cache import cached_labels, open_pixels
from actors.data.images.pixel_cache_writer import PixelWriter
from actors.data.task_rows import Rows
from actors.files.fingerprint import fingerprint

VERSION = "shift-2"
"""Raised when a change of this code, or of `corruptions.py`, changes images."""

CHUNK = 256
"""Images corrupted at a time."""


def corrupted(rows: Rows, corruption: str, severity: int, root: Path, *, seed: int = 0) -> Rows:
    """These rows with corrupted images; computed where the cache lacks them.

    A row's image depends on (seed, its number in the source split), so carving out other rows does
    not change it.

    Args:
        rows: clean rows.
        corruption: a key of `CORRUPTIONS`.
        severity: 1 to 5.
        root: the cache folder.
        seed: of the random numbers.

    Raises:
        InputError: an unknown corruption or severity, images that are too small, no space left.
    """
    pixels = open_pixels(rows.file)
    at = np.arange(len(pixels.labels)) if rows.indices is None else rows.indices
    # The name of the source file is a content hash.
    key = fingerprint(VERSION, rows.file.name, at.tolist(), corruption, severity, seed)
    path = root / "pixels" / f"{key}.arrow"
    if cached_labels(path) is None:
        images, labels = pixels.images.numpy(), pixels.labels.numpy()
        shape = images.shape[1:]
        about = {"shape": ",".join(map(str, shape)), "corruption": f"{corruption} {severity}"}
        width = int(np.prod(shape))
        with PixelWriter([(path, len(at), about)], width) as writer:
            for start in range(0, len(at), CHUNK):
                part = at[start : start + CHUNK]
                made = corrupt(corruption, images[part], severity, seed=seed, indices=part.tolist())
                writer.write(chunk(made.reshape(len(part), width), labels[part], start))
    return replace(rows, file=path, indices=None, features={})


def chunk(images: np.ndarray, labels: np.ndarray, start: int) -> pa.Table:
    """Images [n, width] and labels as a table of rows from `start` on, for `PixelWriter`."""
    count, width = images.shape
    return pa.table(
        {
            "part": np.zeros(count, dtype=np.int64),
            "row": np.arange(start, start + count),
            "label": labels,
            "image": pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), width),
        }
    )
