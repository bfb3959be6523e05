"""Figures of an analysis: a matplotlib figure with its caption."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.analysis.core.finding import Line

NAME = 22
"""Longest name in a picture, in characters."""

Tables: TypeAlias = Mapping[str, Sequence[Line]]
"""Of one finding: name -> lines."""


@dataclass(frozen=True)
class Picture:
    """A figure and its caption."""

    name: str
    title: str
    figure: Figure


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with a size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def value(cell: Any) -> float:
    """A number of a table; NaN if it is missing."""
    return math.nan if cell is None else float(cell)
