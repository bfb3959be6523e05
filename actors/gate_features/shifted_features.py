"""Features of corrupted rows, for a gate's evaluation under shift; computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.data.protocol import Corruption, FeatureEncoder
from actors.data.row_file import open_labels
from actors.data.task import Task
from actors.data.task_rows import Rows
from actors.files.matrix_file import matrix_shape
from actors.gate_features.feature_cache import Split, features_path, write


def corrupted_features(
    extractor: FeatureEncoder,
    task: Task,
    split: str,
    indices: NDArray[np.int64] | None,
    corruption: Corruption,
    root: Path,
    *,
    device: str = "cpu",
) -> Path:
    """Compute the features [N, d] of some rows of a source split under a corruption.

    The file's rows are those of `Inputs.corrupted`. Texts are corrupted before they are tokenised:
    extractor and fused model read the same ones. Images are corrupted at the extractor's input
    size, and those of the fused model at its own: the same corruption, severity, seed and rows. The
    two see the same corrupted image only if the sizes agree.

    Args:
        extractor: an opened extractor.
        task: the task of the rows.
        split: a source split.
        indices: row numbers; None: all.
        corruption: one of the extractor's kind of data.
        root: the cache folder.
        device: device to compute on.

    Raises:
        InputError: see `Inputs.prepare`, `Inputs.corrupted` and `prepare_features`.
    """
    at = (task.name, split)
    file = extractor.inputs.prepare({task.name: task}, [at], root)[at]
    made = extractor.inputs.corrupted(Rows(file, indices), task, split, corruption, root).file
    path, rows = features_path(extractor, made, root, device), len(open_labels(made))
    if matrix_shape(path) != (rows, extractor.width):
        write(extractor, [Split(path, made, *at, rows)], lambda done, total: None, device)
    return path
