"""Some rows of a data set, and how a process that only decodes reads them.

Imports neither torch nor `fusion` when loaded, for the reason `imaging.py` gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from actors.decoding import FORMATS, Unusable, decoded

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
    root: str = ""
    """The data set's folder, in which files lie that rows name; empty: where the rows come from."""


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
    root: str = ""
    """The data set's folder, in which files lie that rows name; empty: where the rows come from."""


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
    """Decode and prepare a chunk: columns image [3·H·W] uint8, label, part, row, deep, error.

    A row that cannot be used ends the chunk: it is the last one, with `error` set. `deep`: the
    image had 16 bits and was scaled to 8.
    """
    height, width = preprocess.shape
    images = np.zeros((chunk.rows.count, 3, height, width), dtype=np.uint8)
    labels = np.zeros(chunk.rows.count, dtype=np.int64)
    deep = np.zeros(chunk.rows.count, dtype=bool)
    done, error = 0, None
    try:
        for content, where, label in read(chunk.rows):
            error, deep[done] = decode_row(content, label, chunk.classes, preprocess, images[done])
            if error is not None:
                inside = f" ({where})" if where else ""
                error = f"{chunk.name}: row {chunk.start + done}{inside}: {error}"
                break
            labels[done] = int(label)
            done += 1
    except Exception as failed:  # readers raise what they like on damaged data
        reason = " ".join(str(failed).split())[:300] or type(failed).__name__
        error = f"{chunk.name}: row {chunk.start + done} ({source(chunk.rows)}): {reason}"
    done += error is not None
    errors = [error if index == done - 1 else None for index in range(done)]
    flat = pa.array(images[:done].reshape(-1))
    return pa.table(
        {
            "image": pa.FixedSizeListArray.from_arrays(flat, 3 * height * width),
            "label": pa.array(labels[:done]),
            "part": pa.array(np.full(done, chunk.part, dtype=np.int32)),
            "row": pa.array(np.arange(chunk.start, chunk.start + done, dtype=np.int64)),
            "deep": pa.array(deep[:done]),
            "error": pa.array(errors, pa.string()),
        }
    )


def decode_row(
    content: bytes | str | None,
    label: Any,
    classes: int,
    preprocess: Preprocess,
    out: np.ndarray[Any, np.dtype[np.uint8]],
) -> tuple[str | None, bool]:
    """One image into `out` [3, H, W]: what is wrong with the row, and whether it had 16 bits."""
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < classes:
        first = " (do labels start at 1?)" if label == classes else ""
        return f"label {label!r}; the {classes} class names allow 0 to {classes - 1}{first}", False
    if content is None:
        return "no image", False
    try:
        with decoded(content) as (image, deep):
            out[:] = preprocess.to_uint8(image)
    except Unusable as error:
        return f"refused image: {error}", False
    except Exception as error:  # a damaged file can raise anything in a decoder
        reason = " ".join(str(error).split())[:200]
        if reason.startswith("cannot identify image file"):
            reason = f"not an image of these formats: {', '.join(FORMATS)}"
        return f"broken image: {reason or type(error).__name__}", False
    return None, deep


def source(rows: Rows) -> str:
    """Where rows come from, as messages name it."""
    if isinstance(rows, FileRows):
        return "an image folder"
    return rows.file if isinstance(rows, ParquetRows) else rows.dataset


def named_file(name: str, folder: str, root: str) -> str:
    """The file that a data row names, relative to `folder`; it lies inside `root`.

    Raises:
        Unusable: a URL, a path with `..`, one or a link that leaves `root`, or no file.
    """
    where = Path(folder) / name
    plain = "://" not in name and "::" not in name and "\0" not in name
    if not plain or ".." in Path(name).parts or not where.is_relative_to(root):
        raise Unusable(f"names {name[:80]!r}; a path inside the data set's folder is needed")
    file = where.resolve()
    if not file.is_relative_to(Path(root).resolve()):
        raise Unusable(f"names {name[:80]!r}, a link that leaves the data set's folder")
    if not file.is_file():
        raise Unusable(f"names {name[:80]!r}; no such file")
    return str(file)


def read(rows: Rows) -> Iterator[tuple[bytes | str | None, str | None, Any]]:
    """(encoded image or its path, its name, label) a row, in order.

    Raises:
        Unusable: a row names a file that is not inside its data set's folder.
    """
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
        folder = rows.dataset
    table = table.slice(rows.offset, rows.count)
    images, labels = table.column(rows.image), table.column(rows.label)
    for image, label in zip(images, labels, strict=True):
        content: Any = image.as_py()
        name = None
        if isinstance(content, dict):
            content, name = content.get("bytes"), content.get("path")
        if isinstance(content, str):
            content, name = None, content
        if content is None and name is not None:
            content = named_file(name, folder, rows.root or folder)
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
