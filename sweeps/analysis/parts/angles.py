"""What the parts of an analysis read, and the first of them: angles between task vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from actors.experts.evaluation import TaskData
from actors.experts.recipe import BASE
from fusion.errors import InputError
from fusion.task_vectors import gram as grams
from fusion.task_vectors.gram import Gram
from sweeps.analysis.core.evaluated_points import Metrics, Points
from sweeps.analysis.core.finding import Finding, Line
from sweeps.analysis.core.shift_probes import Shifted
from sweeps.results.ingredient_recipes import Recipe

TOWER = ("embeddings", "pre_layrnorm", "encoder", "post_layernorm", "visual_projection")
"""Parts of the vision tower, in order."""

BEST, SECOND = "best", "second"
"""Words for the best and the second best expert on select."""


@dataclass(frozen=True)
class Given:
    """What all parts read."""

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
    recipes: Mapping[str, Recipe]
    """What each ingredient was trained with, where its folder says so."""
    dtype: str
    seed: int
    images: int
    """Rows of the probe, all tasks together."""
    soup: bool
    """Whether the models are ingredients: runs of the same tasks."""
    shifted: Shifted = field(default_factory=Shifted)
    """Shift sets, and points on their rows where those are wanted."""

    @property
    def context_under_shift(self) -> str:
        """`context`, of what depends on shift sets too."""
        return f"{self.context}-{self.shifted.key}" if self.shifted.key else self.context

    def score(self, name: str) -> float:
        """An expert's metric on select, larger is better; NaN: it has none."""
        value = self.singles[name].get(self.metric, math.nan)
        return -value if self.metric.startswith("nll") else value

    @property
    def seen(self) -> str:
        """What walks are measured on, in words."""
        return f"Measured on {self.images:,} images of select, the same for all."

    @property
    def ranked(self) -> list[str]:
        """Experts, the best on select first; those without a finite score are left out."""
        scored = [name for name in self.gram.tasks if math.isfinite(self.score(name))]
        return sorted(scored, key=lambda name: -self.score(name))


@dataclass(frozen=True)
class Wish:
    """What the user asked for, beyond which parts."""

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


def wished(plane: str, pairs: Sequence[str], **others: Any) -> Wish:
    """What the command line asks for; `others` as `Wish` has them.

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
    return Wish(where, tuple(both), **others)


def skipped(given: Given, part: str, why: str) -> Finding:
    """A part that cannot be computed."""
    return Finding(part, given.context, "", (f"Skipped: {why}.",))


def gram(given: Given, wish: Wish) -> Finding:
    """Norms, cosines and angles of all task vectors, in whole and by block."""
    matrix = given.gram
    blocks = grams.regrouped(matrix, grams.part_of)
    weights = grams.least_norm(matrix.total).tolist()
    norms = grams.norms(matrix.total).tolist()
    experts: list[Line] = [
        {
            "expert": name, "norm": norms[at], "least_norm_weight": weights[at],
            **{key: given.singles[name].get(key) for key in ("acc/mean", "nll/mean")},
            "learning_rate": given.recipes.get(name, {}).get("learning_rate"),
        }
        for at, name in enumerate(matrix.tasks)
    ]  # fmt: skip
    tables: dict[str, list[Line]] = {"experts": experts, "angles": [], "blocks": []}
    inside = sorted(blocks.by_group.items(), key=lambda block: place_of(block[0]))
    for where, products in [("total", matrix.total), *inside]:
        cosines, angles = grams.cosines(products), grams.angles(products)
        for i, j in combinations(range(len(matrix.tasks)), 2):
            line = {
                "first": matrix.tasks[i], "second": matrix.tasks[j],
                "inner": float(products[i, j]), "cosine": float(cosines[i, j]),
                "angle": float(angles[i, j]),
            }  # fmt: skip
            if where == "total":
                tables["angles"].append(line)
            else:
                tables["blocks"].append({"block": where, **line})
    table = grams.cosines(matrix.total).tolist()
    tables["cosines"] = [
        {"cosine": name, **dict(zip(matrix.tasks, line, strict=True))}
        for name, line in zip(matrix.tasks, table, strict=True)
    ]
    tables["norms"] = [
        {"block": where, "expert": name, "norm": length}
        for where, products in inside
        for name, length in zip(matrix.tasks, grams.norms(products).tolist(), strict=True)
    ]
    about = "Angles between task vectors, with the base as origin, over all tensors of the models."
    return Finding("gram", given.context, about, gram_lines(given), tables, ("experts",))


def place_of(block: str) -> tuple[int, int, str]:
    """Where a block is in the tower, from the images on: what blocks are sorted by.

    >>> sorted(["post_layernorm", "encoder.layers.10", "encoder.layers.9"], key=place_of)
    ['encoder.layers.9', 'encoder.layers.10', 'post_layernorm']
    """
    part, _, number = block.partition(".layers.")
    return TOWER.index(part) if part in TOWER else len(TOWER), int(number or 0), block


def gram_lines(given: Given) -> list[str]:
    """What the angles say."""
    matrix, lines = given.gram, []
    if zero := grams.zero_tasks(matrix):
        lines.append(f"Equal to the base, so without an angle: {', '.join(zero)}.")
    if len(matrix.tasks) < 2:
        return [*lines, "One model: there is no angle."]
    upper = np.triu_indices(len(matrix.tasks), 1)
    angles = grams.angles(matrix.total).numpy()[upper]
    if np.isfinite(angles).any():
        low, high = np.nanargmin(angles), np.nanargmax(angles)
        (a, b), (c, d) = [
            (matrix.tasks[upper[0][at]], matrix.tasks[upper[1][at]]) for at in (low, high)
        ]
        lines.append(
            f"Angles reach from {angles[low]:.1f}° ({a}, {b}) to {angles[high]:.1f}° ({c}, {d});"
            f" the median is {np.nanmedian(angles):.1f}°."
        )
    cosine, ratio = grams.stock(matrix.total)
    if math.isfinite(cosine):
        lines.append(
            f"The mean cosine is {cosine:.3f}; over the whole model Model Stock would go"
            f" {ratio:.3f} of the way from the base to the average."
        )
    return lines
