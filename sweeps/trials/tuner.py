"""Run Tune, and raise the error of our own callback if one failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def fit(tuner: Any, faults: Sequence[BaseException]) -> None:
    """Call `tuner.fit()`; if it fails, raise the first of `faults`, if there is one.

    Tune wraps what a callback raises in an error of its own, so callbacks note theirs in `faults`,
    a list that is filled during the run. Other exceptions of Tune are raised unchanged.
    """
    try:
        tuner.fit()
    except Exception:
        if faults:
            raise faults[0] from None
        raise
