"""Files of per-sample correctness on the report split, for intervals and paired tests.

A row of the comparison has one file, `<row>.arrow`: columns task, index, correct and predicted (the
class that was chosen; files of earlier versions lack it), and in the metadata its trial key, its
metrics, and a checksum of all that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.experts.metrics import ACCURACY, Samples
from actors.files.atomic import replacing
from actors.files.checksums import FIELD, Damaged, facts_sum, reason_of
from actors.files.checksums import checksum as checksum_of
from fusion.errors import InputError

Correct: TypeAlias = Mapping[str, Samples]
"""Task -> samples in index order: whether each was classified rightly; of a metric that does not
count right rows, float64 [N, 2], prediction and target."""

SUFFIX = ".arrow"

PAIR = ("prediction", "target", "measure")
"""Columns in place of `correct`, where a metric does not count right rows; the third of `score`."""


CHOSEN = "predicted"
"""Column of the classes that were chosen."""


@dataclass(frozen=True, eq=False)
class Kept:
    """Content of a file."""

    trial_key: str
    metrics: Mapping[str, float]
    tasks: NDArray[np.str_]
    """[N]: each sample's task."""
    index: NDArray[np.int64]
    """[N]: its place among the task's samples."""
    correct: Samples
    """[N], [N, 2] or [N, 3]."""
    metric: str = ACCURACY.name
    """Whose samples they are."""
    predicted: NDArray[np.int32] | None = None
    """[N]: the class that was chosen, −1: none; None: not known."""

    def checksum(self) -> str:
        """Checksum of all content."""
        samples = checksum_of(
            "\n".join(self.tasks.tolist()).encode(),
            np.ascontiguousarray(self.index).view(np.uint8).data,
            np.ascontiguousarray(self.correct).view(np.uint8).data,
            *([] if self.predicted is None else [self.predicted.view(np.uint8).data]),
        )
        facts = {"trial_key": self.trial_key, "metrics": dict(self.metrics)}
        return facts_sum(facts | self.other_metric(), samples)

    def other_metric(self) -> dict[str, str]:
        """The metric's name, where it is not accuracy."""
        return {} if self.metric == ACCURACY.name else {"metric": self.metric}


def write_kept(path: Path, kept: Kept) -> None:
    """Write a file atomically.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    about = {"trial_key": kept.trial_key, "metrics": json.dumps(dict(kept.metrics))}
    pair = kept.correct.ndim == 2
    columns = dict(zip(PAIR, kept.correct.T, strict=False)) if pair else {"correct": kept.correct}
    table = pa.table(
        {
            "task": pa.array(kept.tasks.tolist(), pa.string()).dictionary_encode(),
            "index": pa.array(kept.index),
            **{name: pa.array(column) for name, column in columns.items()},
            **({} if kept.predicted is None else {CHOSEN: pa.array(kept.predicted, pa.int32())}),
        }
    ).replace_schema_metadata({**about, **kept.other_metric(), FIELD: kept.checksum()})
    with (
        replacing(path) as part,
        pa.OSFile(str(part), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def read_kept(path: Path, *, must: bool = True) -> Kept:
    """Read and verify a file.

    Args:
        path: the file.
        must: whether there must be a checksum; files of earlier versions have none.

    Raises:
        FileNotFoundError: it is not there.
        Damaged: it is not what was written.
    """
    data = path.read_bytes()
    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        table.validate(full=True)
        metadata = table.schema.metadata or {}
        found = Kept(
            metadata.get(b"trial_key", b"").decode(),
            json.loads(metadata.get(b"metrics", b"{}")),
            table["task"].cast(pa.string()).to_numpy(),
            table["index"].to_numpy(),
            np.stack(
                [table[name].to_numpy() for name in PAIR if name in table.column_names], axis=1
            )
            if PAIR[0] in table.column_names
            else table["correct"].to_numpy(),
            metadata.get(b"metric", ACCURACY.name.encode()).decode(),
            np.array(table[CHOSEN].to_numpy(), np.int32) if CHOSEN in table.column_names else None,
        )
        stated = metadata.get(FIELD.encode(), b"").decode()
        if stated != found.checksum() and (stated or must):
            raise ValueError("another checksum" if stated else "no checksum")
    except Exception as error:  # Arrow raises what it likes on a damaged file
        raise Damaged(reason_of(error)) from None
    return found


def read_correct(folder: Path) -> dict[str, dict[str, Samples]]:
    """Read all `<row>.arrow` files: row -> task -> samples, in index order.

    Raises:
        InputError: a damaged file, or two rows were evaluated on different samples of a task.
    """
    rows: dict[str, dict[str, Samples]] = {}
    samples: dict[str, NDArray[np.int64]] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            kept = read_kept(path, must=False)
        except Damaged as error:
            raise InputError(
                f"{path}: damaged ({error}); --resume evaluates its row again"
            ) from None
        rows[path.stem] = {}
        for task in dict.fromkeys(kept.tasks.tolist()):
            (places,) = np.nonzero(kept.tasks == task)
            places = places[np.argsort(kept.index[places], kind="stable")]
            index = kept.index[places]
            if not np.array_equal(samples.setdefault(task, index), index):
                raise InputError(f"{path}: {task}: other samples than the other rows'; delete it")
            rows[path.stem][task] = kept.correct[places]
    return rows


def read_predicted(folder: Path) -> dict[str, dict[str, NDArray[np.int32]]]:
    """Classes that rows chose: row -> task -> int32 [N], in index order, −1: none.

    Damaged files, and those of earlier versions, have none.
    """
    rows: dict[str, dict[str, NDArray[np.int32]]] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            kept = read_kept(path, must=False)
        except (Damaged, OSError):
            continue
        if kept.predicted is None:
            continue
        rows[path.stem] = {}
        for task in dict.fromkeys(kept.tasks.tolist()):
            (places,) = np.nonzero(kept.tasks == task)
            order = np.argsort(kept.index[places], kind="stable")
            rows[path.stem][task] = kept.predicted[places[order]]
    return rows
