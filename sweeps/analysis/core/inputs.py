"""Inputs of every part of an analysis: models, points, data, and the user's options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.artifacts.recipe import BASE
from actors.data.task import Kind
from actors.data.task_rows import TaskData
from actors.experts.metrics import sign_of
from fusion.errors import InputError
from fusion.task_vectors.gram import Gram
from sweeps.analysis.core.evaluated_points import Metrics, Points
from sweeps.analysis.core.finding import Finding
from sweeps.analysis.core.shift_probes import Shifted
from sweeps.results.ingredient_recipes import TrainingRecipe

BEST, SECOND = "best", "second"
"""Words for the best and the second best expert on select."""


@dataclass(frozen=True)
class AnalysisInputs:
    """Inputs of all parts."""

    context: str
    gram: Gram
    whole: Points
    """On all rows of select."""
    probe: Points
    """On some of them: what walks are measured on."""
    data: Mapping[str, TaskData]
    singles: Mapping[str, Metrics]
    """Of each expert alone, on select."""
    metric: str
    recipes: Mapping[str, TrainingRecipe]
    """What each ingredient was trained with, where its folder says so."""
    dtype: str
    seed: int
    rows: int
    """Of the probe, all tasks together."""
    soup: bool
    """Whether the models are ingredients: runs of the same tasks."""
    shifted: Shifted = field(default_factory=Shifted)
    """Shift sets, and points on their rows where those are wanted."""
    blocks: tuple[str, ...] = ()
    """Blocks of the model, as `grams.layer_of` names them, in the model's order."""
    unit: Kind = "image"
    """What the data's rows are."""

    @property
    def context_under_shift(self) -> str:
        """`context`, with the hash of the shift sets."""
        return f"{self.context}-{self.shifted.key}" if self.shifted.key else self.context

    def score(self, name: str) -> float:
        """An expert's metric on select, larger is better; NaN if it has none."""
        return sign_of(self.metric) * self.singles[name].get(self.metric, math.nan)

    @property
    def seen(self) -> str:
        """Sentence about the rows that paths are evaluated on."""
        return f"Measured on {self.rows:,} {self.unit}s of select, the same for all."

    @property
    def ranked(self) -> list[str]:
        """Experts, the best on select first; those without a finite score are left out."""
        scored = [name for name in self.gram.tasks if math.isfinite(self.score(name))]
        return sorted(scored, key=lambda name: -self.score(name))


@dataclass(frozen=True)
class AnalysisOptions:
    """Options of the user, besides the parts to compute."""

    plane: tuple[str, str, str] | None = None
    """Origin, first, second; None: base, best, second best."""
    pairs: tuple[tuple[str, str], ...] = ()
    size: int = 21
    margin: float = 0.3
    most: int = 12
    """Models that pairs are made of, the best."""
    alpha: float = 0.5
    path: str | None = None
    """The expert that WiSE-FT's path leads to; None: the best, or each task's own."""
    alphas: int = 11
    """Points on that path."""
    linear: bool = True
    """Whether the path of the linear classifier is walked too."""


def read_options(plane: str, pairs: Sequence[str], **others: Any) -> AnalysisOptions:
    """Parse the options of the command line; `others` are fields of `AnalysisOptions`.

    Raises:
        InputError: a plane of neither two nor three names, a pair of other than two.
    """
    three = tuple(name.strip() for name in plane.split(",")) if plane else ()
    if len(three) == 2:
        three = (BASE, *three)
    if len(three) not in (0, 3):
        raise InputError(f"--plane: {plane!r}: FIRST,SECOND or ORIGIN,FIRST,SECOND allowed")
    both = []
    for pair in pairs:
        names = tuple(name.strip() for name in pair.split(","))
        if len(names) != 2:
            raise InputError(f"--pair: {pair!r}: FIRST,SECOND allowed")
        both.append((names[0], names[1]))
    where = (three[0], three[1], three[2]) if three else None
    return AnalysisOptions(where, tuple(both), **others)


def skipped(inputs: AnalysisInputs, part: str, why: str) -> Finding:
    """Finding of a part that cannot be computed."""
    return Finding(part, inputs.context, "", (f"Skipped: {why}.",))
