"""Diagnosis of soups that are no better than their best ingredient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fusion.errors import InputError
from fusion.task_vectors.gram import Gram, angles, distances, norms, zero_tasks

SAME = 1e-6
"""Models whose distance is below this fraction of their distance from the base count as equal."""


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
    """Explain in sentences why a soup of these ingredients may be no better than the best one.

    Each limit is a rule of thumb; those without a source are this project's.

    Args:
        gram: of the ingredients' task vectors.
        scores: [T] accuracies in [0, 1]; NaN: failed.
        learning_rates: [T]; None if unknown.
        barriers: (task, task) -> height of the loss barrier between them.
        wide_angle: angle in degrees above which task vectors share few directions. Default 85.
        high_rate: learning rates from which models rarely average well. Default 1e-4: the cells of
            the published one-dimensional grid that do not gain.
        rate_ratio: largest acceptable ratio of learning rates. Default 30.
        score_gap: largest acceptable distance of a score from the best. Default 0.05.
        high_barrier: largest acceptable loss barrier. Default 0.05.

    Raises:
        InputError: another number of scores or learning rates than of ingredients, or a barrier of
            an unknown one.

    Source: Wortsman et al. 2022, arXiv:2203.05482, Fig. 3 and App.; mlfoundations/model-soups #10.
    """
    for name, values in (("scores", scores), ("learning rates", learning_rates)):
        if values is not None and len(values) != len(gram.tasks):
            raise InputError(f"{name}: {len(values)} given for {len(gram.tasks)} ingredients")
    return [
        *duplicate_models(gram),
        *wide_angles(gram, wide_angle),
        *low_scores(gram.tasks, scores, score_gap),
        *learning_rate_findings(gram.tasks, learning_rates or (), high_rate, rate_ratio),
        *loss_barriers(gram, barriers or {}, high_barrier),
    ]


def duplicate_models(gram: Gram) -> list[str]:
    """Findings on ingredients that equal the base or one another."""
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


def wide_angles(gram: Gram, limit: float) -> list[str]:
    """Finding on wide angles between task vectors; names the widest."""
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


def low_scores(tasks: Sequence[str], scores: Sequence[float], gap: float) -> list[str]:
    """Findings on failed scores and on scores far below the best."""
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


def learning_rate_findings(
    tasks: Sequence[str], learning_rates: Sequence[float | None], high: float, ratio: float
) -> list[str]:
    """Findings on high and on widely spread learning rates."""
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


def loss_barriers(gram: Gram, barriers: Mapping[tuple[str, str], float], limit: float) -> list[str]:
    """Findings on pairs with a loss barrier between them."""
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
    """All pairs (i, j) with i < j."""
    return [(i, j) for j in range(len(tasks)) for i in range(j)]


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
