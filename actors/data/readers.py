"""Rows of a data set as picklable descriptions, and how a decoding process reads them.

Imports neither torch nor `fusion` at load time, for the reason given in `preprocess.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from actors.data.images.decode import FORMATS, Unusable, decoded

if TYPE_CHECKING:
    from actors.data.images.preprocess import Preprocess


@dataclass(frozen=True)
class Columns:
    """Names of the table columns to read: the inputs in order, and the label."""

    inputs: tuple[str, ...]
    """One column of images, or one or more of texts."""
    label: str
    kind: Literal["image", "text"] = "image"
    """What the input columns hold."""
    numbers: tuple[str, ...] = ()
    """Class -> a number as text ("0.0", "0.1", …). Labels are then numbers of any kind, and a row
    is of the class that its label equals, rounded to that many decimals."""

    def class_of(self, label: Any) -> Any:
        """The class of a label as read; what is not a class is handed back as it is.

        >>> Columns(("a", "b"), "score", "text", ("0.0", "0.1", "0.2")).class_of(0.1499)
        1
        """
        if isinstance(label, bool) or not self.numbers or not isinstance(label, int | float):
            return int(label) if isinstance(label, bool) else label
        text = f"{label + 0.0:.{len(self.numbers[0].partition('.')[2])}f}"
        return self.numbers.index(text) if text in self.numbers else label


@dataclass(frozen=True)
class ParquetRows:
    """`count` rows of one row group, starting at `offset`."""

    file: str
    group: int
    offset: int
    count: int
    columns: Columns
    root: str = ""
    """The data set's folder, in which files lie that rows name; empty: where the rows come from."""


@dataclass(frozen=True)
class FileRows:
    """Image files, one for each row."""

    files: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.files)


@dataclass(frozen=True)
class ArrowRows:
    """`count` rows of an Arrow file, starting at `offset`."""

    file: str
    offset: int
    count: int
    columns: Columns
    root: str = ""
    """As of `ParquetRows`."""


@dataclass(frozen=True)
class Library:
    """A request to the `datasets` library: files of one split, or a data set of the hub."""

    name: str
    """A hub id, or the format of the files."""
    config: str | None
    revision: str | None
    split: str
    files: tuple[str, ...] = ()
    """Local files; none: of the hub."""
    separator: str = ""
    """Between the columns of a CSV file; empty: a comma."""
    content: str = ""
    """Hash of the local files' content. The library knows files by path and time of change alone,
    and would otherwise give the rows of other content with the same time."""


@dataclass(frozen=True)
class LibraryRows:
    """`count` rows of a split that the `datasets` library reads, starting at `offset`."""

    source: Library
    offset: int
    count: int
    columns: Columns
    root: str = ""
    """As of `ParquetRows`; empty: the library's own cache."""
    names: tuple[str, ...] | None = None
    """The texts of the label column, by label; None: it holds numbers."""


Rows: TypeAlias = ParquetRows | ArrowRows | FileRows | LibraryRows


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one source split: the work of one decoding call."""

    part: int
    """Which of the files being written they belong to."""
    start: int
    """Number of the first row within the split."""
    rows: Rows
    classes: int
    name: str
    """Task and split, as messages begin."""


def decode(chunk: Chunk, preprocess: Preprocess) -> pa.Table:
    """Decode and preprocess a chunk: columns image [3·H·W] uint8, label, part, row, deep, error.

    A row that cannot be used ends the chunk: it is the last row, with `error` set. `deep`: the
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
        if error is None and done < chunk.rows.count:
            raise ValueError(f"{chunk.rows.count} rows stated, {done} there")
    except Exception as failed:  # readers raise any exception on damaged data
        reason = " ".join(str(failed).split())[:300] or type(failed).__name__
        error = f"{chunk.name}: row {chunk.start + done} ({origin(chunk.rows)}): {reason}"
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
    """Decode an image into `out` [3, H, W]; returns (error or None, whether it had 16 bits)."""
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


def origin(rows: Rows) -> str:
    """Source of rows, for messages."""
    if isinstance(rows, FileRows):
        return "an image folder"
    return rows.source.name if isinstance(rows, LibraryRows) else rows.file


def local_files(rows: Rows) -> tuple[str, ...]:
    """Local files that rows are read from; empty for data sets of the hub."""
    if isinstance(rows, FileRows):
        return rows.files[:1]
    return rows.source.files if isinstance(rows, LibraryRows) else (rows.file,)


def named_file(name: str, folder: str, root: str) -> str:
    """Path of the file that a data row names relative to `folder`; it must lie inside `root`.

    Raises:
        Unusable: a URL, a path with `..`, a path or link that leaves `root`, or a missing file.
    """
    where, home = Path(folder) / name, Path(root)
    plain = "://" not in name and "::" not in name and "\0" not in name
    if not plain or ".." in Path(name).parts or not where.is_relative_to(home):
        raise Unusable(f"names {name[:80]!r}; a path inside the data set's folder is needed")
    homes = [home.resolve()]
    if home.parent.name == "snapshots":  # the hub's cache keeps contents beside, named by hash
        homes.append(home.parent.parent.resolve() / "blobs")
    file = where.resolve()
    if not any(file.is_relative_to(each) for each in homes):
        raise Unusable(f"names {name[:80]!r}, a link that leaves the data set's folder")
    if not file.is_file():
        raise Unusable(f"names {name[:80]!r}; no such file")
    return str(file)


def read(rows: Rows) -> Iterator[tuple[bytes | str | None, str | None, Any]]:
    """(encoded image or its path, its name, label) of each row, in order.

    Raises:
        Unusable: a row names a file outside its data set's folder.
    """
    if isinstance(rows, FileRows):
        yield from zip(rows.files, rows.files, rows.labels, strict=True)
        return
    table = table_of(rows)
    folder = str(Path(rows.file).parent) if not isinstance(rows, LibraryRows) else rows.root
    images, labels = table.column(rows.columns.inputs[0]), table.column(rows.columns.label)
    for image, label in zip(images, labels, strict=True):
        content: Any = image.as_py()
        name = None
        if isinstance(content, dict):
            content, name = content.get("bytes"), content.get("path")
        if isinstance(content, str):
            content, name = None, content
        if content is None and name is not None:
            content = named_file(
                name, folder or library_home(), rows.root or folder or library_home()
            )
        yield content, name, label_of(label.as_py(), rows)


def label_of(value: Any, rows: ParquetRows | ArrowRows | LibraryRows) -> Any:
    """The class that a value of the label column means; None where it is empty."""
    names = rows.names if isinstance(rows, LibraryRows) else None
    if names is not None and value is not None:
        return names.index(str(value))
    return rows.columns.class_of(value)


def table_of(rows: ParquetRows | ArrowRows | LibraryRows, *, keep_group: bool = False) -> pa.Table:
    """Table of the input and label columns of these rows.

    `keep_group`: keep their row group of a Parquet file, for the next cut of it. Texts are small.
    """
    wanted = [*rows.columns.inputs, rows.columns.label]
    if isinstance(rows, ParquetRows):
        read_group = kept_group if keep_group else row_group
        written = Path(rows.file).stat().st_mtime_ns
        table = read_group(rows.file, rows.group, tuple(wanted), written)
    elif isinstance(rows, ArrowRows):
        table = arrow_table(rows.file)
    else:
        table = library_table(rows.source, rows.columns.inputs[0])
    return table.slice(rows.offset, rows.count).select(wanted)


def row_group(file: str, group: int, wanted: tuple[str, ...], written: int) -> pa.Table:
    """Columns of a row group of a Parquet file; `written`: the file's time, for `kept_group`."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(file, page_checksum_verification=True).read_row_group(
        group, columns=list(wanted), use_threads=False
    )


kept_group = lru_cache(maxsize=1)(row_group)
"""`row_group`, with the last one kept."""


@cache
def arrow_table(file: str) -> pa.Table:
    """A memory-mapped Arrow file, in stream format (as `datasets` writes it) or file format."""
    source = pa.memory_map(file)
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source).read_all()


@cache
def library_table(source: Library, column: str) -> pa.Table:
    """A split as an Arrow table over memory-mapped files; images of `column` stay encoded."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs is in the exceptions, too
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it would also report local reads
    if source.files:
        options = {"sep": source.separator} if source.separator else {}
        files = {source.split: list(source.files)}
        loaded = datasets.load_dataset(  # the name is part of the key of the library's cache
            source.name, source.content or None, data_files=files, split=source.split, **options
        )
    else:
        loaded = datasets.load_dataset(
            source.name, source.config, revision=source.revision, split=source.split
        )
    if isinstance(loaded.features.get(column), datasets.Image):
        loaded = loaded.cast_column(column, datasets.Image(decode=False))
    return loaded.data.table


def library_home() -> str:
    """The folder in which the `datasets` library keeps its files."""
    import datasets

    return str(datasets.config.HF_CACHE_HOME)
