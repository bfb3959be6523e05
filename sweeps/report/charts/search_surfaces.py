"""Search surfaces: accuracy of a logit-space method over α, and β or a temperature, for each task.

A search is one trial; its surface is stored in the trial's learned file. This module reads it for
plots, and writes it as a table for MLflow and for other programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from actors.artifacts.fitted_file import SEPARATOR
from actors.files.atomic import replacing
from sweeps.results.comparison import Row
from sweeps.results.folder import learned_name

START = "surface."
AXES = ("beta", "temperature")
"""What a surface may have beside α."""


@dataclass(frozen=True, eq=False)
class Searched:
    """One task's surface on the select rows; all float64."""

    task: str
    axis: str
    """What `values` are: of `AXES`; empty: accuracy was searched over α alone, and R is 1."""
    values: NDArray[np.float64]
    """[R]; of α alone, NaN."""
    alphas: NDArray[np.float64]
    """[A], ascending."""
    grid: NDArray[np.float64]
    """[R, A]: accuracy."""
    ridge: Mapping[str, NDArray[np.float64]]
    """`accuracy`, `low`, `high`, `alpha` [R]: the best over α at each value, and where it is."""
    row: int
    """Which value was taken."""

    @property
    def best(self) -> dict[str, float]:
        """`accuracy`, `low`, `high` and `alpha` of the selected row."""
        return {name: float(column[self.row]) for name, column in self.ridge.items()}


def read(learned: Path, trial_key: str | None) -> list[Searched]:
    """Read a trial's surfaces, task by task; none if it kept none, or its file cannot be read.

    Args:
        learned: the folder of what the sweep's trials learned.
        trial_key: the trial's; None: none.
    """
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    taken: dict[str, dict[str, float]] = {}
    try:
        with safe_open(learned / learned_name(trial_key or ""), framework="np") as file:
            for key in sorted(file.keys()):
                task, _, name = key.partition(SEPARATOR)
                if name.startswith(START):
                    column = file.get_tensor(key)
                    found.setdefault(task, {})[name.removeprefix(START)] = column
                elif name in AXES:
                    taken.setdefault(task, {})[name] = float(file.get_tensor(key))
    except (OSError, SafetensorError):
        return []
    made = (searched(task, tensors, taken.get(task, {})) for task, tensors in found.items())
    return [each for each in made if each is not None]


def searched(
    task: str, tensors: Mapping[str, NDArray[np.float64]], taken: Mapping[str, float]
) -> Searched | None:
    """Parse a surface; None for files without a grid, as earlier versions wrote them."""
    if "grid" not in tensors:
        return None
    axis = next((name for name in AXES if name in tensors), "")
    ridge = {name: tensors[name] for name in ("accuracy", "low", "high", "alpha")}
    if not axis:
        return Searched(
            task, axis, np.array([np.nan]), tensors["alphas"], tensors["grid"], ridge, 0
        )
    order = np.argsort(tensors[axis])
    values = tensors[axis][order]
    row = int(np.flatnonzero(values == taken[axis])[0])
    ridge = {name: column[order] for name, column in ridge.items()}
    return Searched(task, axis, values, tensors["alphas"], tensors["grid"][order], ridge, row)


def table(surfaces: Iterable[Searched]) -> pa.Table:
    """One row for each configuration: task, beta and temperature (if searched), alpha, accuracy.

    The grid's rows come first, value by value; then, with `low` and `high`, the plateau's ends, one
    row a value: its best α. `chosen` marks the one that was taken.
    """
    rows: list[dict[str, Any]] = []
    for each in surfaces:
        for i, value in enumerate(each.values.tolist()):
            at = {"task": each.task, **({each.axis: value} if each.axis else {})}
            line = zip(each.alphas.tolist(), each.grid[i].tolist(), strict=True)
            rows += [{**at, "alpha": a, "accuracy": hits, "chosen": False} for a, hits in line]
            best = {name: float(column[i]) for name, column in each.ridge.items()}
            rows.append({**at, **best, "chosen": i == each.row})
    number = pa.float64()
    schema = pa.schema(
        [("task", pa.string()), *((name, number) for name in AXES), ("alpha", number),
         ("accuracy", number), ("low", number), ("high", number), ("chosen", pa.bool_())]
    )  # fmt: skip
    return pa.Table.from_pylist(rows, schema)


def write_tables(rows: Iterable[Row], learned: Path, folder: Path) -> dict[str, Path]:
    """Write `<folder>/<method>.parquet` of each winner that searched a surface; method -> file.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    found = {}
    for row in rows:
        if surfaces := read(learned, row.trial_key):
            found[row.method] = folder / f"{row.method}.parquet"
            with replacing(found[row.method]) as part:
                pq.write_table(table(surfaces), part, compression="zstd")
    return found
