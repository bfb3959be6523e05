"""Files of prepared rows: columns of fixed width, ragged columns with offsets, labels.

One sealed Arrow file for each source split, with one record batch, memory-mapped. Values that are
the same for all rows are stored once, in the schema's metadata. Pixel files have one column and
their own writer (`images/pixel_cache.py`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.files.arrow import about_of, checked, flat, numbers, sealed, tensor_of
from actors.files.atomic import replacing, writing
from actors.files.checksums import FIELD, Damaged
from fusion.errors import InputError, one_line

LABEL = "label"

CONSTANTS = "constants"
"""Entry of the metadata with columns that are one value for all rows, as JSON."""

LENGTHS = ".lengths"
"""After a ragged column's name: the column of its rows' lengths, as `take` gives it."""


@dataclass(frozen=True, eq=False)
class RowFile:
    """One source split: views of a memory-mapped file."""

    columns: Mapping[str, Tensor]
    """Of fixed width: [N, …]."""
    ragged: Mapping[str, tuple[Tensor, Tensor]]
    """(numbers of all rows one after the other, int64 offsets [N + 1])."""
    labels: Tensor
    """int64 [N]."""
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    """One value [...] for all rows."""
    about: Mapping[str, str] = field(default_factory=dict)
    """What else the writer said of the file."""

    @property
    def lengths(self) -> Tensor | None:
        """Row lengths of the first ragged column, int64 [N]; None without ragged columns."""
        offsets = next((offsets for _, offsets in self.ragged.values()), None)
        return None if offsets is None else offsets.diff()

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows by index: fixed columns [B, …]; of ragged ones, joined values and lengths [B].

        Constants are expanded to [B, …], without a copy.
        """
        found = {name: column[rows] for name, column in self.columns.items()}
        for name, (values, offsets) in self.ragged.items():
            parts = [values[offsets[row] : offsets[row + 1]] for row in rows.tolist()]
            found[name] = torch.cat(parts) if parts else values[:0]
            found[name + LENGTHS] = offsets[rows + 1] - offsets[rows]
        for name, value in self.constants.items():
            found[name] = value.expand(len(rows), *value.shape)
        return found


def write_rows(
    path: Path,
    labels: NDArray[np.int64],
    columns: Mapping[str, NDArray[Any]],
    ragged: Mapping[str, tuple[NDArray[Any], NDArray[np.int64]]],
    constants: Mapping[str, NDArray[Any]] | None = None,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write a file atomically; arguments as in `RowFile`, columns flattened to [N, width].

    Raises:
        InputError: it cannot be written.
    """
    arrays: dict[str, pa.Array] = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)
        for name, values in columns.items()
    }
    for name, (values, offsets) in ragged.items():
        kind = pa.from_numpy_dtype(values.dtype)
        flat_values = pa.Array.from_buffers(
            kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
        )
        arrays[name] = pa.LargeListArray.from_arrays(pa.array(offsets), flat_values)
    batch = pa.record_batch([*arrays.values(), pa.array(labels)], [*arrays, LABEL])
    more = dict(about or {})
    if constants:
        more[CONSTANTS] = json.dumps(
            {
                name: {
                    "kind": value.dtype.name,
                    "shape": value.shape,
                    "values": value.ravel().tolist(),
                }
                for name, value in constants.items()
            }
        )
    with replacing(path) as part:
        sealed(part, batch, more)


class RowWriter:
    """A file of ragged rows under way: numbers go to unnamed files at once, so memory stays flat.

    What is kept in memory is a length and a label a row. Nothing is left behind without `finish`.
    """

    def __init__(self, path: Path, kinds: Mapping[str, str]) -> None:
        """`kinds`: ragged column -> its dtype.

        Raises:
            InputError: the folder cannot be written to.
        """
        self.path, self.kinds = path, dict(kinds)
        self.lengths: dict[str, list[NDArray[np.int64]]] = {name: [] for name in kinds}
        self.labels: list[NDArray[np.int64]] = []
        self.stack = ExitStack()
        self.files: dict[str, Any] = {}
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            for name in kinds:
                file = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115, the stack closes it
                self.files[name] = self.stack.enter_context(file)

    def write(
        self,
        values: Mapping[str, tuple[NDArray[Any], NDArray[np.int64]]],
        labels: NDArray[np.int64],
    ) -> None:
        """The next rows: ragged column -> (numbers of all rows one after the other, lengths)."""
        with writing(self.path):
            for name, (numbers_, lengths) in values.items():
                self.files[name].write(numbers_.astype(self.kinds[name]).tobytes())
                self.lengths[name].append(lengths.astype(np.int64))
        self.labels.append(labels.astype(np.int64))

    def finish(self, constants: Mapping[str, NDArray[Any]], about: Mapping[str, str]) -> None:
        """Write the file; see `write_rows`."""
        ragged = {}
        for name, kind in self.kinds.items():
            file, lengths = self.files[name], np.concatenate([*self.lengths[name], [0]])[:-1]
            with writing(self.path):
                file.flush()
            size = int(lengths.sum())
            mapped_ = np.memmap(file, kind, "r", shape=(size,)) if size else np.zeros(0, kind)
            offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
            ragged[name] = (mapped_, offsets)
        labels = np.concatenate([*self.labels, np.zeros(0, np.int64)])
        write_rows(self.path, labels, {}, ragged, constants, about)
        self.close()

    def close(self) -> None:
        """Drop what has been written so far."""
        self.stack.close()


def open_rows(path: Path) -> RowFile:
    """Open a file of prepared rows, memory-mapped.

    Raises:
        InputError: missing or damaged.
    """
    about, batch = mapped(path)
    columns, ragged = {}, {}
    for name in batch.schema.names:
        array, values = batch.column(name), numbers(batch, name)
        kind = values.type.to_pandas_dtype()
        if pa.types.is_large_list(array.type):
            offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1)
            ragged[name] = (tensor_of(flat(batch, name, kind)), tensor_of(offsets))
        elif name != LABEL:
            columns[name] = tensor_of(flat(batch, name, kind).reshape(len(array), -1))
    constants = {
        name: torch.tensor(each["values"], dtype=getattr(torch, each["kind"])).view(each["shape"])
        for name, each in json.loads(about.pop(CONSTANTS, "{}")).items()
    }
    return RowFile(columns, ragged, tensor_of(flat(batch, LABEL, np.int64)), constants, about)


def open_labels(path: Path) -> Tensor:
    """Labels [N] of a file of prepared rows of any kind, memory-mapped.

    Raises:
        InputError: missing or damaged.
    """
    return tensor_of(flat(mapped(path)[1], LABEL, np.int64))


def open_lengths(path: Path) -> NDArray[np.int64] | None:
    """Lengths [N] of the rows of a file, in its first ragged column; None: rows are all alike.

    Raises:
        InputError: missing or damaged.
    """
    _, batch = mapped(path)
    ragged = (array for array in batch.columns if pa.types.is_large_list(array.type))
    found = next(ragged, None)
    if found is None:
        return None
    offsets = np.frombuffer(found.buffers()[1], np.int64, len(found) + 1)
    return np.diff(offsets)


def mapped(path: Path) -> tuple[dict[str, str], pa.RecordBatch]:
    """Metadata and record batch of a file of prepared rows.

    Raises:
        InputError: missing, damaged, or without labels.
    """
    try:
        schema, batch = checked(path)
        batch.column(LABEL)
    except (OSError, Damaged, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise InputError(
            f"{path}: not a file of prepared rows: {reason}; delete it, and it is made again"
        ) from None
    about = about_of(schema)
    return {name: value for name, value in about.items() if name != FIELD}, batch
