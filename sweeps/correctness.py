"""Per-sample correctness on the report split: what intervals and paired tests are counted from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fusion.errors import InputError

Correct: TypeAlias = Mapping[str, NDArray[np.bool_]]
"""Task -> whether each sample was classified rightly, in index order."""


def read_correct(folder: Path) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Row -> task -> per-sample correctness, from `<row>.arrow` files, in index order.

    Raises:
        InputError: two rows were evaluated on different samples of a task.
    """
    rows: dict[str, dict[str, NDArray[np.bool_]]] = {}
    samples: dict[str, NDArray[np.int64]] = {}
    for path in sorted(folder.glob("*.arrow")):
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            tasks = table["task"].cast(pa.string()).to_numpy()
            index, hits = table["index"].to_numpy(), table["correct"].to_numpy()
        rows[path.stem] = {}
        for task in dict.fromkeys(tasks.tolist()):
            (places,) = np.nonzero(tasks == task)
            places = places[np.argsort(index[places], kind="stable")]
            if not np.array_equal(samples.setdefault(task, index[places]), index[places]):
                raise InputError(f"{path}: {task}: other samples than the other rows'; delete it")
            rows[path.stem][task] = hits[places]
    return rows
