"""Tasks: which data, which classes, and which rows a role may see."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusion.errors import InputError

Indices = npt.NDArray[np.int64]


def partition(
    labels: npt.NDArray[np.integer], fraction: float = 0.1, seed: int = 0
) -> tuple[Indices, Indices]:
    """Split the rows of one source split, class by class: (fit indices, val indices).

    `labels` is [N]; both results are sorted int64, disjoint, and together 0 … N−1. Every class
    gives round(fraction · its rows) to val, at least one where it has two rows or more, and
    always keeps one for fit. The same labels, fraction and seed give the same rows.

    Raises:
        InputError: a fraction outside (0, 1).

    >>> fit, val = partition(np.array([0, 0, 0, 0, 1, 1]), fraction=0.25)
    >>> len(fit), len(val)
    (4, 2)
    """
    if not 0.0 < fraction < 1.0:
        raise InputError(f"val_fraction: {fraction}; between 0 and 1 (both excluded) allowed")
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        chosen[generator.permutation(rows)[:count]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
