"""Memory-mapped Arrow files of one record batch with fixed-width columns, allocated before filling.

A mapped record batch is one block of memory, so a column becomes one tensor without a copy.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.files.checksums import (
    CHECKED,
    DIGITS,
    FIELD,
    Damaged,
    chunks_of,
    column_sums,
    differing,
    facts_sum,
    reason_of,
    state_of,
)

if TYPE_CHECKING:  # start-up time: processes that only decode rows need no torch
    from torch import Tensor

HOLE = 1 << 16
"""Writes of at least this many bytes are zeros of the skeleton and are skipped."""


@dataclass(frozen=True)
class Column:
    """A column: one number a row, or a list of fixed length a row."""

    name: str
    kind: pa.DataType
    """Arrow type of a number."""
    width: int | None = None
    """Length of the list of each row; None: one number, not a list."""

    @property
    def bytes(self) -> int:
        """Bytes of one row."""
        size: int = self.kind.bit_width // 8
        return size * (1 if self.width is None else self.width)


def skeleton(
    file: BinaryIO, path: Path, rows: int, columns: Sequence[Column], about: Mapping[str, str]
) -> dict[str, int]:
    """Write an Arrow file of zeros of the final size; returns the byte offset of each column.

    Arrow needs the complete record batch before it writes it, and all rows must be in one batch to
    form one tensor. So the frame is written first with holes for the rows; rows are written into
    the holes later, and `seal` writes the frame again with checksums. Disk space is allocated
    here, so a full disk is found before anything is computed.

    Args:
        file: empty file, open for reading and writing, unbuffered.
        path: its path.
        rows: final number of rows.
        columns: columns in order.
        about: metadata of the schema.
    """
    if hasattr(os, "posix_fallocate") and rows:
        os.posix_fallocate(file.fileno(), 0, rows * sum(column.bytes for column in columns))
    size = max(1, *(rows * column.bytes for column in columns))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    zeros = pa.py_buffer(mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ))
    arrays = []
    for column in columns:
        count = rows * (1 if column.width is None else column.width)
        values = pa.Array.from_buffers(column.kind, count, [None, zeros])
        listed = column.width is not None
        arrays.append(pa.FixedSizeListArray.from_arrays(values, column.width) if listed else values)
    batch = pa.record_batch(arrays, [column.name for column in columns])
    parts = sum(len(chunks_of(rows * column.bytes)) for column in columns)
    frame(file, batch, {**about, FIELD: "0" * DIGITS * (parts + 1)})
    mapped = pa.memory_map(str(path))
    origin = mapped.read_buffer().address
    mapped.seek(0)
    written = pa.ipc.open_file(mapped).get_batch(0)
    return {
        column.name: numbers(written, column.name).buffers()[1].address - origin
        for column in columns
    }


def frame(file: BinaryIO, batch: pa.RecordBatch, about: Mapping[str, str]) -> None:
    """Write the frame of an Arrow file of one batch; the bytes of long columns are skipped."""
    file.seek(0)
    sink = pa.PythonFile(Holes(file), mode="w")
    with pa.ipc.new_file(sink, batch.schema.with_metadata(dict(about))) as writer:
        writer.write_batch(batch.replace_schema_metadata(dict(about)))
    file.truncate(file.tell())


def seal(file: BinaryIO, path: Path) -> None:
    """Compute the checksums of all rows and write them into the metadata of the file.

    Args:
        file: the file given to `skeleton`, with all rows written.
        path: its path.
    """
    schema, batch = opened(path)
    about = about_of(schema)
    sums = column_sums(views(batch))
    frame(file, batch, {**about, FIELD: "".join([*sums, root_of(schema, batch, sums)])})


def opened(path: Path) -> tuple[pa.Schema, pa.RecordBatch]:
    """Schema and record batch of a file, memory-mapped, without a check of its checksums.

    Raises:
        ValueError, pa.ArrowException, OSError: not an Arrow file of one record batch.
    """
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    if reader.num_record_batches != 1:
        raise ValueError(f"{reader.num_record_batches} record batches; 1 needed")
    return reader.schema, reader.get_batch(0)


def checked(path: Path, *, whole: bool = False) -> tuple[pa.Schema, pa.RecordBatch]:
    """Schema and record batch of a sealed file, memory-mapped, after a check of its checksums.

    Args:
        path: the file.
        whole: check every byte now, even if this process has checked the file before; otherwise
            as much as `Checked.budget` allows.

    Raises:
        FileNotFoundError: no such file.
        Damaged: the content is not what was written; one line.
    """
    try:
        state = state_of(path)
        schema, batch = opened(path)
        if whole or not CHECKED.has(path):
            size = sum(len(view) for view in views(batch))
            budget = size if whole else CHECKED.budget(size)
            check(schema, batch, budget)
            CHECKED.add(path, state, budget)
    except FileNotFoundError:
        raise
    except Exception as error:  # Arrow raises many types on a damaged frame
        raise Damaged(reason_of(error)) from None
    return schema, batch


def check(schema: pa.Schema, batch: pa.RecordBatch, budget: int) -> None:
    """Raise ValueError where a checksum differs; `budget`: bytes to check."""
    stated = (schema.metadata or {}).get(FIELD.encode(), b"").decode()
    *sums, root = [stated[at : at + DIGITS] for at in range(0, len(stated), DIGITS)] or [""]
    if root != root_of(schema, batch, sums):
        raise ValueError("another checksum" if stated else "no checksum")
    fault = differing(views(batch), sums, budget)
    if fault is not None:
        raise ValueError(fault)


def root_of(schema: pa.Schema, batch: pa.RecordBatch, sums: list[str]) -> str:
    """Checksum of schema, metadata, row count and the checksums of the columns."""
    kinds = [[field.name, str(field.type)] for field in schema]
    return facts_sum(about_of(schema), json.dumps([batch.num_rows, kinds]), *sums)


def about_of(schema: pa.Schema) -> dict[str, str]:
    """Metadata of a schema as text."""
    return {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}


def views(batch: pa.RecordBatch) -> list[memoryview]:
    """Bytes of each column's numbers, followed by those of the offsets of ragged lists."""
    found = []
    for name in batch.schema.names:
        column, values = batch.column(name), numbers(batch, name)
        size = len(values) * values.type.bit_width // 8
        found.append(memoryview(values.buffers()[1])[:size].cast("B"))
        if values.null_count or column.null_count:
            raise ValueError(f"column {name!r}: nulls")
        if len(found[-1]) != size or values.offset:
            raise ValueError(f"column {name!r}: {len(found[-1])} bytes; {size} needed")
        if pa.types.is_large_list(column.type):
            found.append(memoryview(column.buffers()[1])[: 8 * (len(column) + 1)].cast("B"))
    return found


def numbers(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column's numbers as one flat array; lists are joined."""
    column = batch.column(name)
    listed = pa.types.is_fixed_size_list(column.type) or pa.types.is_large_list(column.type)
    return column.values if listed else column


def sealed(path: Path, batch: pa.RecordBatch, about: Mapping[str, str] | None = None) -> None:
    """Write a record batch from memory as a file with checksums; lists may be ragged.

    `about`: metadata of the schema.
    """
    sums = column_sums(views(batch))
    bare = batch.replace_schema_metadata(dict(about or {}))
    stated = {**(about or {}), FIELD: "".join([*sums, root_of(bare.schema, bare, sums)])}
    with pa.ipc.new_file(str(path), bare.schema.with_metadata(stated)) as writer:
        writer.write_batch(bare.replace_schema_metadata(stated))


def write_all(file: BinaryIO, data: Any, at: int) -> int:
    """Write all bytes at a position, in several calls if needed; returns the end position."""
    whole = memoryview(data)
    if not whole.nbytes:
        return at
    view = whole.cast("B")
    while len(view):
        # Not through a memory map: a full disk would kill the process with SIGBUS.
        count = os.pwrite(file.fileno(), view, at)
        view, at = view[count:], at + count
    return at


def tensor_of(array: NDArray[Any]) -> Tensor:
    """A mapped array as a tensor without a copy; read-only by convention."""
    import torch  # start-up time: processes that only decode rows need no torch

    with warnings.catch_warnings():
        # Torch has no read-only tensors and warns about it.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


def flat(batch: pa.RecordBatch, name: str, kind: type[np.generic]) -> NDArray[Any]:
    """A column's numbers as one array, without a copy."""
    values = numbers(batch, name)
    return np.frombuffer(values.buffers()[1], dtype=kind, count=len(values))


class Holes(io.RawIOBase):
    """File wrapper that turns long writes (always zeros here) into holes."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file = file

    def writable(self) -> bool:
        """True: the wrapper can be written to."""
        return True

    def write(self, data: Any) -> int:
        """Seek over long data, write short data."""
        count = memoryview(data).nbytes
        if count >= HOLE:
            self.file.seek(count, os.SEEK_CUR)
        else:
            self.file.write(data)
        return count
