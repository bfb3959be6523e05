"""Diagnosis of soups that are no better than their best ingredient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fusion.errors import InputError
from fusion.task_vectors.gram import Gram, angles, distances, norms, zero_tasks

SAME = 1e-6
"""Models nearer than this fraction of their distance from the base are one model."""


def diagnose(
    gram: Gram,
    scores: Sequence[float],
    learning_rates: Sequence[float | None] | None = None,
    barriers: Mapping[tuple[str, str], float] | None = None,
    *,
    wide_angle: float = 85.0,
    high_rate: float = 1e-4,
    rate_ratio: float = 30.0,
    score_gap: float = 0.05,
    high_barrier: float = 0.05,
) -> list[str]:
    """Why a soup of these ingredients may be no better than its best one: plain sentences.

    Each limit is a rule of thumb, not a theorem; those without a source are this project's.

    Args:
        gram: of the ingredients' task vectors.
        scores: [T] accuracies in [0, 1]; NaN: failed.
        learning_rates: [T]; None where it is not known.
        barriers: (task, task) -> height of the loss barrier between them.
        wide_angle: degrees; task vectors further apart share hardly a direction.
        high_rate: learning rates from here on rarely average. Default 1e-4: the cells of the
            published one-dimensional grid that do not gain.
        rate_ratio: how far apart the largest and the smallest learning rate may be.
        score_gap: how far below the best a score may be. Default 5 points.
        high_barrier: in units of the loss.

    Raises:
        InputError: another number of scores or learning rates than of ingredients, or a barrier
            of an unknown one.

    Source: Wortsman et al. 2022, arXiv:2203.05482, Fig. 3 and App.; mlfoundations/model-soups #10.
    """
    for name, values in (("scores", scores), ("learning rates", learning_rates)):
        if values is not None and len(values) != len(gram.tasks):
            raise InputError(f"{name}: {len(values)} given for {len(gram.tasks)} ingredients")
    return [
        *alike(gram),
        *far_apart(gram, wide_angle),
        *behind(gram.tasks, scores, score_gap),
        *rates(gram.tasks, learning_rates or (), high_rate, rate_ratio),
        *walls(gram, barriers or {}, high_barrier),
    ]


def alike(gram: Gram) -> list[str]:
    """Sentences on ingredients that equal the base or one another."""
    found = [f"Ingredient {task!r} equals the base." for task in zero_tasks(gram)]
    apart, length = distances(gram.total), norms(gram.total)
    for i, j in pairs(gram.tasks):
        longest = float(torch.maximum(length[i], length[j]))
        if longest > 0 and float(apart[i, j]) <= SAME * longest:
            found.append(
                f"Ingredients {gram.tasks[i]!r} and {gram.tasks[j]!r} are the same model:"
                " a uniform soup counts it twice."
            )
    return found


def far_apart(gram: Gram, limit: float) -> list[str]:
    """A sentence on wide angles, naming the widest."""
    between = angles(gram.total)
    wide = [(float(between[i, j]), i, j) for i, j in pairs(gram.tasks) if between[i, j] > limit]
    if not wide:
        return []
    angle, i, j = max(wide)
    return [
        f"Task vectors are more than {limit:g} degrees apart in {len(wide)} of"
        f" {len(pairs(gram.tasks))} pairs, most {gram.tasks[i]!r} and {gram.tasks[j]!r} with"
        f" {angle:.1f}: they may not share a basin."
    ]


def behind(tasks: Sequence[str], scores: Sequence[float], gap: float) -> list[str]:
    """Sentences on failed scores and on those far below the best."""
    found = [
        f"Ingredient {task!r} has no score ({score})."
        for task, score in zip(tasks, scores, strict=True)
        if not np.isfinite(score)
    ]
    best = max((score for score in scores if np.isfinite(score)), default=0.0)
    low = [task for task, score in zip(tasks, scores, strict=True) if score < best - gap]
    if low:
        worst = min(score for score in scores if np.isfinite(score))
        found.append(
            f"More than {100 * gap:g} points below the best score ({100 * best:.1f} %):"
            f" {listed(low)}; the worst has {100 * worst:.1f} %: drop them first."
        )
    return found


def rates(
    tasks: Sequence[str], learning_rates: Sequence[float | None], high: float, ratio: float
) -> list[str]:
    """Sentences on high and on widely spread learning rates."""
    known = [(rate, t) for t, rate in zip(tasks, learning_rates, strict=False) if rate is not None]
    found = []
    hot = [task for rate, task in known if rate >= high]
    if hot:
        found.append(
            f"Trained with a learning rate of {high:g} or more: {listed(hot)};"
            " such models rarely average."
        )
    if known and max(known)[0] > ratio * min(known)[0]:
        found.append(
            f"Learning rates reach from {min(known)[0]:g} to {max(known)[0]:g}, more than a factor"
            f" {ratio:g}: the ingredients moved very different distances from the base."
        )
    return found


def walls(gram: Gram, barriers: Mapping[tuple[str, str], float], limit: float) -> list[str]:
    """Sentences on pairs with a loss barrier between them."""
    found = []
    for (first, second), height in barriers.items():
        gram.of(first), gram.of(second)
        if not height <= limit:
            found.append(
                f"There is a loss barrier of {height:.3g} between {first!r} and {second!r}:"
                " they do not average."
            )
    return found


def pairs(tasks: Sequence[str]) -> list[tuple[int, int]]:
    """(i, j) with i < j."""
    return [(i, j) for j in range(len(tasks)) for i in range(j)]


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
