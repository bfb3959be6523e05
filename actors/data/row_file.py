"""Files of prepared rows: columns of fixed width, ragged columns with offsets, labels.

One sealed Arrow file for each source split, with one record batch, memory-mapped. Pixel files have
one column and their own writer (`images/pixel_cache.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.files.arrow import checked, flat, numbers, sealed, tensor_of
from actors.files.atomic import replacing
from actors.files.checksums import Damaged
from fusion.errors import InputError, one_line

LABEL = "label"

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

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows by index: fixed columns [B, …]; of ragged ones, joined values and lengths [B]."""
        found = {name: column[rows] for name, column in self.columns.items()}
        for name, (values, offsets) in self.ragged.items():
            parts = [values[offsets[row] : offsets[row + 1]] for row in rows.tolist()]
            found[name] = torch.cat(parts) if parts else values[:0]
            found[name + LENGTHS] = offsets[rows + 1] - offsets[rows]
        return found


def write_rows(
    path: Path,
    labels: NDArray[np.int64],
    columns: Mapping[str, NDArray[Any]],
    ragged: Mapping[str, tuple[NDArray[Any], NDArray[np.int64]]],
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
        arrays[name] = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))
    batch = pa.record_batch([*arrays.values(), pa.array(labels)], [*arrays, LABEL])
    with replacing(path) as part:
        sealed(part, batch)


def open_rows(path: Path) -> RowFile:
    """Open a file of prepared rows, memory-mapped.

    Raises:
        InputError: missing or damaged.
    """
    batch = mapped(path)
    columns, ragged = {}, {}
    for name in batch.schema.names:
        array, values = batch.column(name), numbers(batch, name)
        kind = values.type.to_pandas_dtype()
        if pa.types.is_large_list(array.type):
            offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1)
            ragged[name] = (tensor_of(flat(batch, name, kind)), tensor_of(offsets))
        elif name != LABEL:
            columns[name] = tensor_of(flat(batch, name, kind).reshape(len(array), -1))
    return RowFile(columns, ragged, tensor_of(flat(batch, LABEL, np.int64)))


def open_labels(path: Path) -> Tensor:
    """Labels [N] of a file of prepared rows of any kind, memory-mapped.

    Raises:
        InputError: missing or damaged.
    """
    return tensor_of(flat(mapped(path), LABEL, np.int64))


def mapped(path: Path) -> pa.RecordBatch:
    """The record batch of a file of prepared rows.

    Raises:
        InputError: missing, damaged, or without labels.
    """
    try:
        _, batch = checked(path)
        batch.column(LABEL)
    except (OSError, Damaged, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise InputError(
            f"{path}: not a file of prepared rows: {reason}; delete it, and it is made again"
        ) from None
    return batch
