"""Some rows of a data set, and how a process that only decodes reads them.

Imports neither torch nor `fusion` when loaded, for the reason `imaging.py` gives.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from actors.imaging import Preprocess


@dataclass(frozen=True)
class ParquetRows:
    """`count` rows of one row group, from `offset` on."""

    file: str
    group: int
    offset: int
    count: int
    image: str
    label: str


@dataclass(frozen=True)
class FileRows:
    """Image files, one a row."""

    files: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many rows."""
        return len(self.files)


@dataclass(frozen=True)
class HubRows:
    """`count` rows, from `offset` on, of a split that the `datasets` library reads."""

    dataset: str
    config: str | None
    revision: str | None
    split: str
    offset: int
    count: int
    image: str
    label: str


Rows: TypeAlias = ParquetRows | FileRows | HubRows


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one source split: what one call decodes."""

    part: int
    """Which of the files being written they belong to."""
    start: int
    """Number of the first row within the split."""
    rows: Rows
    classes: int
    name: str
    """Task and split, as messages begin."""


def decode(chunk: Chunk, preprocess: Preprocess) -> pa.Table:
    """Decode and prepare a chunk: columns image [3·H·W] uint8, label, part, row, error.

    A row that cannot be used ends the chunk: it is the last one, with `error` set.
    """
    height, width = preprocess.shape
    images = np.zeros((chunk.rows.count, 3, height, width), dtype=np.uint8)
    labels = np.zeros(chunk.rows.count, dtype=np.int64)
    done, error = 0, None
    for content, where, label in read(chunk.rows):
        error = decode_row(content, label, chunk.classes, preprocess, images[done])
        if error is not None:
            inside = f" ({where})" if where else ""
            error = f"{chunk.name}: row {chunk.start + done}{inside}: {error}"
        else:
            labels[done] = int(label)
        done += 1
        if error is not None:
            break
    errors = [error if index == done - 1 else None for index in range(done)]
    flat = pa.array(images[:done].reshape(-1))
    return pa.table(
        {
            "image": pa.FixedSizeListArray.from_arrays(flat, 3 * height * width),
            "label": pa.array(labels[:done]),
            "part": pa.array(np.full(done, chunk.part, dtype=np.int32)),
            "row": pa.array(np.arange(chunk.start, chunk.start + done, dtype=np.int64)),
            "error": pa.array(errors, pa.string()),
        }
    )


def decode_row(
    content: bytes | str | None,
    label: Any,
    classes: int,
    preprocess: Preprocess,
    out: np.ndarray[Any, np.dtype[np.uint8]],
) -> str | None:
    """One image into `out` [3, H, W]; what is wrong with the row, or None."""
    from PIL import Image

    if not isinstance(label, int) or not 0 <= label < classes:
        return f"label {label!r}; the {classes} class names allow 0 to {classes - 1}"
    if content is None:
        return "no image"
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            out[:] = preprocess.to_uint8(image)
    except Exception as error:  # a damaged file can raise anything in a decoder
        reason = " ".join(str(error).split())
        if reason.startswith("cannot identify image file"):
            reason = "not an image file that Pillow knows"
        return f"broken image: {reason or type(error).__name__}"
    return None


def read(rows: Rows) -> Iterator[tuple[bytes | str | None, str | None, Any]]:
    """(encoded image or its path, its name, label) a row, in order."""
    if isinstance(rows, FileRows):
        yield from zip(rows.files, rows.files, rows.labels, strict=True)
        return
    if isinstance(rows, ParquetRows):
        import pyarrow.parquet as pq

        table = pq.ParquetFile(rows.file).read_row_group(
            rows.group, columns=[rows.image, rows.label], use_threads=False
        )
        folder = str(Path(rows.file).parent)
    else:
        table = hub_table(rows.dataset, rows.config, rows.revision, rows.split, rows.image)
        folder = ""
    table = table.slice(rows.offset, rows.count)
    images, labels = table.column(rows.image), table.column(rows.label)
    for image, label in zip(images, labels, strict=True):
        content: Any = image.as_py()
        name = None
        if isinstance(content, dict):
            content, name = content.get("bytes"), content.get("path")
            if content is None and name is not None:
                content = str(Path(folder) / name)
        number = label.as_py()
        yield content, name, int(number) if isinstance(number, bool) else number


@cache
def hub_table(
    dataset: str, config: str | None, revision: str | None, split: str, image: str
) -> pa.Table:
    """A split as an Arrow table over memory-mapped files; images stay encoded."""
    import datasets

    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(dataset, config, revision=revision, split=split)
    return loaded.cast_column(image, datasets.Image(decode=False)).data.table
