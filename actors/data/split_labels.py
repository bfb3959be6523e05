"""Labels of a split without its images: from the label column or the folder names."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from actors.data.readers import FileRows, LibraryRows, ParquetRows, Rows, arrow_table, library_table
from actors.data.task import Task
from fusion.errors import InputError, reading

Labels = npt.NDArray[np.int64]


def split_labels(task: Task, split: str) -> Labels | None:
    """Labels [N] of a split, in row order; None where reading them would download images.

    Raises:
        InputError: a label column that cannot be read, an empty label, or a label without a class
            name; names task, split and row.
    """
    where = f"task {task.name!r}: split {split!r}"
    pieces = [piece for piece, _ in task.split(split).pieces]
    if any(isinstance(each, LibraryRows) and not each.source.files for each in pieces):
        return None
    with reading(where):
        found = [column(piece) for piece in pieces]
    labels: Labels = np.concatenate(found) if found else np.zeros(0, np.int64)
    classes = len(task.classnames)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        label = int(labels[wrong[0]])
        said = "none" if label == EMPTY else label
        hint = " (do labels start at 1?)" if label == classes and labels.min() == 1 else ""
        raise InputError(
            f"{where}: row {wrong[0]}: label {said}; the {classes} class names allow 0 to"
            f" {classes - 1}{hint}"
        )
    return labels


EMPTY = np.iinfo(np.int64).min
"""Stands for a row without a label."""


@cache
def column(rows: Rows) -> Labels:
    """Labels of some rows; cached in this process."""
    if isinstance(rows, FileRows):
        return np.array(rows.labels, dtype=np.int64)
    if isinstance(rows, ParquetRows):
        import pyarrow.parquet as pq

        table = pq.ParquetFile(rows.file).read_row_group(rows.group, columns=[rows.columns.label])
    elif isinstance(rows, LibraryRows):
        table = library_table(rows.source, rows.columns.inputs[0])
    else:
        table = arrow_table(rows.file)
    values = table.column(rows.columns.label).slice(rows.offset, rows.count).to_pylist()
    names = rows.names if isinstance(rows, LibraryRows) else None
    if names is not None:
        at = {name: label for label, name in enumerate(names)}
        values = [None if value is None else at[str(value)] for value in values]
    else:
        values = [rows.columns.class_of(value) for value in values]
    numbers = [EMPTY if value is None else number(value) for value in values]
    return np.array(numbers, dtype=np.int64)


def number(label: int | float) -> int:
    """A label as a whole number; −1 for one with a fraction, which is no class."""
    return -1 if isinstance(label, float) else int(label)
