"""Cache of prepared images: decoded once to a file, then memory-mapped.

One Arrow IPC file holds one source split as one record batch: uint8 images [3·H·W] and int64
labels, in the data set's order. The file's name is a hash of the data and the preprocessing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from actors.data.images.pixel_cache_writer import PixelWriter
from actors.data.images.preprocess import Preprocess
from actors.data.readers import Chunk, decode, local_files
from actors.data.task import Task
from actors.data.workers import mapped
from actors.files.arrow import checked, flat, tensor_of
from actors.files.checksums import Damaged, again, reason_of
from actors.files.fingerprint import fingerprint
from fusion.errors import InputError, one_line

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger(__name__)

CHUNK_BYTES = 32 << 20
"""Prepared images a worker hands over at a time: enough to hide the hand-over, few enough that
blocks in flight fit a small object store."""

CHUNK_ROWS = 1024
"""… and at most so many, that all workers have work and progress shows."""

FEW = 8192
"""Fewer images than this are decoded in this process: sooner done than workers are started."""

Progress = Callable[[int, int], None]
"""progress(images done, images in all)."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """One prepared split: views of a memory-mapped file, which all processes of a node share."""

    images: Tensor
    """uint8 [N, 3, H, W]; read-only."""
    labels: Tensor
    """int64 [N]; read-only."""

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """{"pixels": uint8 [B, 3, H, W]} of these rows."""
        return {"pixels": self.images[rows]}

    def copy_to(self, out: Tensor, rows: Tensor) -> None:
        """Copy these rows into `out` [B, 3, H, W]."""
        import torch  # late: processes that only decode do not need it

        torch.index_select(self.images, 0, rows, out=out)


def pixel_path(task: Task, split: str, preprocess: Preprocess, root: Path) -> Path:
    """Path of a prepared split; the name is a hash of everything that its bytes depend on."""
    key = fingerprint("arrow-2", task.split(split).fingerprint, preprocess.pixels)
    return root / "pixels" / f"{key}.arrow"


def prepare(
    tasks: Mapping[str, Task],
    needed: Collection[tuple[str, str]],
    preprocess: Preprocess,
    root: Path,
    progress: Progress | None = None,
) -> dict[tuple[str, str], Path]:
    """Prepare the splits that are not in the cache, all as one stream.

    Uses Ray Data if Ray is initialised (all nodes that see the data decode, this process writes),
    else decodes in this process.

    Args:
        tasks: name -> task.
        needed: (task, source split).
        preprocess: the base model's preprocessing.
        root: the cache folder.
        progress: called with the images done and the total of images to decode.

    Raises:
        InputError: a broken image or a label out of range, naming task, split and row; or no
            space left. No partial file stays behind.
    """
    paths = {
        (name, split): pixel_path(tasks[name], split, preprocess, root) for name, split in needed
    }
    missing: dict[Path, tuple[str, str]] = {}
    for (name, split), path in paths.items():
        labels = cached_labels(path)
        if labels is None:
            missing.setdefault(path, (name, split))
        else:
            check_labels(labels, tasks[name], split)
    if missing:
        write(tasks, missing, preprocess, progress or (lambda done, total: None))
        for name, split in paths:
            check_labels(open_pixels(paths[name, split]).labels.numpy(), tasks[name], split)
    return paths


def write(
    tasks: Mapping[str, Task],
    missing: Mapping[Path, tuple[str, str]],
    preprocess: Preprocess,
    progress: Progress,
) -> None:
    """Decode and write splits as one stream of chunks."""
    parts = []
    chunks = []
    height, width = preprocess.shape
    size = min(max(CHUNK_BYTES // (3 * height * width), 1), CHUNK_ROWS)
    for index, (path, (name, split)) in enumerate(missing.items()):
        task, data = tasks[name], tasks[name].split(split)
        about = {
            "shape": f"3,{height},{width}",
            "task": name,
            "split": split,
            "data": data.fingerprint,
            "preprocess": preprocess.pixels,
        }
        parts.append((path, data.rows, about))
        classes, where = len(task.classnames), f"task {name!r}: split {split!r}"
        for start, rows in data.chunks(size):
            chunks.append(Chunk(index, start, rows, classes, where))
    done, total = 0, sum(rows for _, rows, _ in parts)
    progress(done, total)
    deep = [0] * len(parts)
    with PixelWriter(parts, 3 * height * width) as writer:
        for table in decoded(chunks, preprocess):
            faults = table.column("error").drop_null()
            if len(faults):
                raise InputError(faults[0].as_py())
            writer.write(table)
            for part in table.filter(table.column("deep")).column("part").to_pylist():
                deep[part] += 1
            done += table.num_rows
            progress(done, total)
    for count, (_, _, about) in zip(deep, parts, strict=True):
        if count:
            LOG.warning(
                "task %r: split %r: %d images of 16-bit grey were scaled to 8 bits",
                *(about["task"], about["split"], count),
            )


def decoded(chunks: list[Chunk], preprocess: Preprocess) -> Iterator[pa.Table]:
    """Decoded chunks, in any order."""
    few = sum(chunk.rows.count for chunk in chunks) < FEW
    files = (file for chunk in chunks for file in local_files(chunk.rows))
    who = "images: a worker that decodes them"
    return mapped(decode, chunks, {"preprocess": preprocess}, files, who, here=few)


def open_pixels(path: Path) -> Pixels:
    """Open a prepared split, memory-mapped; pages are read on use.

    Raises:
        InputError: missing or damaged.
    """
    try:
        batch, (channels, height, width) = open_batch(path)
    except (OSError, Damaged) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise InputError(
            f"{path}: not a pixel file: {reason}; delete it, and it is made again"
        ) from None
    images = flat(batch, "image", np.uint8).reshape(-1, channels, height, width)
    return Pixels(tensor_of(images), tensor_of(flat(batch, "label", np.int64)))


def open_batch(path: Path) -> tuple[pa.RecordBatch, tuple[int, int, int]]:
    """The single record batch of a pixel file, and the shape of its images.

    Raises:
        OSError: the file is missing.
        Damaged: not a pixel file, or its content changed.
    """
    schema, batch = checked(path)
    try:
        told = schema.metadata[b"shape"].split(b",")
        channels, height, width = (int(size) for size in told)
        listed = batch.column("image").type
        if listed != pa.list_(pa.uint8(), channels * height * width):
            raise ValueError(f"shape {told}; images of {listed}")
        batch.column("label")
    except (KeyError, ValueError) as error:
        raise Damaged(reason_of(error)) from None
    return batch, (channels, height, width)


def cached_labels(path: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    """Labels of a prepared split; None, with a warning, where the file is missing or damaged."""
    try:
        batch, _ = open_batch(path)
    except OSError:
        return None
    except Damaged as error:
        again(path, error)
        return None
    labels: np.ndarray[tuple[int], np.dtype[np.int64]] = flat(batch, "label", np.int64)
    return labels


def check_labels(
    labels: np.ndarray[tuple[int], np.dtype[np.int64]], task: Task, split: str
) -> None:
    """Raise InputError where a label has no class name: names may be newer than the file."""
    bad = np.flatnonzero((labels < 0) | (labels >= len(task.classnames)))
    if len(bad):
        raise InputError(
            f"task {task.name!r}: split {split!r}: row {bad[0]}: label {labels[bad[0]]}; the"
            f" {len(task.classnames)} class names allow 0 to {len(task.classnames) - 1}"
        )
