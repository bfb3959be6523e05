"""Write pixel files: rows in any order; each file is renamed into place when complete."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from actors.files.arrow import Column, seal, skeleton, write_all
from actors.files.atomic import replacing


class PixelWriter:
    """Write several pixel files at once; files that are incomplete at closing are removed."""

    def __init__(self, parts: Sequence[tuple[Path, int, Mapping[str, str]]], width: int) -> None:
        """`parts`: (path, rows, schema metadata) of each file; `width`: bytes of one image."""
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
        """Write rows of `readers.decode`; their columns `part` and `row` give file and position."""
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
    """One file being written."""

    def __init__(
        self, path: Path, rows: int, width: int, about: Mapping[str, str], outer: ExitStack
    ) -> None:
        self.path, self.left, self.width = path, rows, width
        # Its own exit stack, so that this file can be closed and renamed before the others.
        self.stack = ExitStack()
        outer.push(self.stack)
        self.temporary = self.stack.enter_context(replacing(path))
        self.file = self.stack.enter_context(self.temporary.open("w+b", buffering=0))
        columns = [Column("image", pa.uint8(), width), Column("label", pa.int64())]
        at = skeleton(self.file, self.temporary, rows, columns, about)
        self.images, self.labels = at["image"], at["label"]

    def write(self, row: int, images: pa.ChunkedArray, labels: np.ndarray[Any, Any]) -> None:
        """Write consecutive rows, starting at `row`."""
        at = self.images + int(row) * self.width
        for chunk in images.chunks:
            values = chunk.flatten()
            start = values.offset
            at = write_all(self.file, values.buffers()[1][start : start + len(values)], at)
        write_all(self.file, labels.astype(np.int64).tobytes(), self.labels + int(row) * 8)
        self.left -= len(labels)
        if self.left == 0:
            seal(self.file, self.temporary)
            self.stack.close()
