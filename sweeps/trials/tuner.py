"""How a Tune run ends: with our own fault where one of our callbacks raised it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def fit(tuner: Any, faults: Sequence[BaseException]) -> None:
    """`tuner.fit()`; where it fails, the first of `faults`, if there is one, is what is raised.

    Tune wraps what a callback raises in an error of its own, so callbacks note theirs in `faults`,
    a list that fills while the run goes on. Whatever else Tune raises is raised as it is.
    """
    try:
        tuner.fit()
    except Exception:
        if faults:
            raise faults[0] from None
        raise
