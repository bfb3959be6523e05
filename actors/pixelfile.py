"""Writing pixel files: rows in any order, each file renamed into place when it is complete."""

from __future__ import annotations

import io
import itertools
import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from actors.atomic import replacing

HOLE = 1 << 16
"""Writes of this many bytes or more are zeros of the skeleton, and are skipped."""


class PixelWriter:
    """Several pixel files under way; those not complete when it closes leave nothing behind."""

    def __init__(self, parts: Sequence[tuple[Path, int, Mapping[str, str]]], width: int) -> None:
        """`parts`: (path, rows, schema metadata) a file; `width`: bytes of an image."""
        self.width = width
        self.all = ExitStack()
        self.parts = []
        try:
            for path, rows, about in parts:
                self.parts.append(Part(path, rows, width, about, self.all))
        except BaseException as error:
            if not self.all.__exit__(type(error), error, error.__traceback__):
                raise

    def __enter__(self) -> PixelWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if error is None:
            short = [str(part.path) for part in self.parts if part.left]
            assert not short, f"rows missing: {short}"
        return self.all.__exit__(kind, error, traceback)

    def write(self, table: pa.Table) -> None:
        """Rows of `rows.decode`: their columns `part` and `row` say where they go."""
        parts = table.column("part").to_numpy()
        rows = table.column("row").to_numpy()
        labels = table.column("label").to_numpy()
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(parts) != 0)) + 1
        edges = [0, *breaks.tolist(), len(rows)]
        images = table.column("image")
        for first, last in itertools.pairwise(edges):
            if first < last:
                part = self.parts[parts[first]]
                part.write(rows[first], images.slice(first, last - first), labels[first:last])


class Part:
    """One file under way."""

    def __init__(
        self, path: Path, rows: int, width: int, about: Mapping[str, str], outer: ExitStack
    ) -> None:
        self.path, self.left, self.width = path, rows, width
        # A stack of its own, so that it can be closed (and the file renamed) before the others.
        self.stack = ExitStack()
        outer.push(self.stack)
        temporary = self.stack.enter_context(replacing(path))
        self.file = self.stack.enter_context(temporary.open("w+b", buffering=0))
        self.images, self.labels = skeleton(self.file, temporary, rows, width, about)

    def write(self, row: int, images: pa.ChunkedArray, labels: np.ndarray[Any, Any]) -> None:
        """Consecutive rows from `row` on."""
        at = self.images + int(row) * self.width
        for chunk in images.chunks:
            values = chunk.flatten()
            start = values.offset
            at = write_all(self.file, values.buffers()[1][start : start + len(values)], at)
        write_all(self.file, labels.astype(np.int64).tobytes(), self.labels + int(row) * 8)
        self.left -= len(labels)
        if self.left == 0:
            self.stack.close()


def write_all(file: BinaryIO, data: Any, at: int) -> int:
    """Write at a position, however many calls it takes; the position after it."""
    view = memoryview(data).cast("B")
    while len(view):
        # Not through a memory map: a full disk would kill the process with SIGBUS.
        count = os.pwrite(file.fileno(), view, at)
        view, at = view[count:], at + count
    return at


def skeleton(
    file: BinaryIO, path: Path, rows: int, width: int, about: Mapping[str, str]
) -> tuple[int, int]:
    """An Arrow file of zeros of the final size; where its images and labels begin, in bytes.

    Arrow lays a record batch out before it writes it, and all images must lie in one batch to
    be one tensor; so the frame is written first, around holes that rows are put into as they
    come. Space is claimed at once: a disk that is too small is found out before any decoding.
    """
    if hasattr(os, "posix_fallocate") and rows:
        os.posix_fallocate(file.fileno(), 0, rows * (width + 8))
    size = max(rows * width, 1)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    zeros = pa.py_buffer(mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ))
    values = pa.UInt8Array.from_buffers(pa.uint8(), rows * width, [None, zeros])
    images = pa.FixedSizeListArray.from_arrays(values, width)
    labels = pa.array(np.zeros(rows, dtype=np.int64))
    batch = pa.record_batch([images, labels], ["image", "label"])
    schema = batch.schema.with_metadata(dict(about))
    sink = pa.PythonFile(Holes(file), mode="w")
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch.replace_schema_metadata(dict(about)))
    file.truncate(file.tell())
    mapped = pa.memory_map(str(path))
    origin = mapped.read_buffer().address
    mapped.seek(0)
    written = pa.ipc.open_file(mapped).get_batch(0)
    return (
        written.column("image").values.buffers()[1].address - origin,
        written.column("label").buffers()[1].address - origin,
    )


class Holes(io.RawIOBase):
    """A file in which long writes (here always zeros) become holes."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file = file

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Skip what is long, write what is short."""
        count = memoryview(data).nbytes
        if count >= HOLE:
            self.file.seek(count, os.SEEK_CUR)
        else:
            self.file.write(data)
        return count
