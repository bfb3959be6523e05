"""Scores of the models that fine-tunings start from, which experts are compared with.

`<out>/base_scores.json` keeps them: task -> context, scores on select and report, report rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from actors.data.task import ACCURACY
from actors.files.checksums import sealed_json, unsealed_json
from actors.files.fingerprint import Fingerprint
from fusion.analysis.significance import wilson
from sweeps.cluster import ray_connection
from sweeps.console.progress import Progress
from sweeps.results.ledger import write_text
from sweeps.train.fine_tuning_context import FineTuningContext
from sweeps.train.ingredients import Ingredient
from sweeps.train.trial import labels_of, measured

FILE = "base_scores.json"

LARGE_RATE = 1e-3
"""A learning rate from which on failure is put down to a rate that is too large."""

SOLVED = 0.99
"""An accuracy of the base from which on little is left to learn."""


@dataclass(frozen=True)
class BaseScore:
    """One task's scores of what its fine-tunings start from."""

    context: Fingerprint
    """What the task's results depend on."""
    select: float
    report: float
    rows: int
    """Of the report split; 0: the metric is no accuracy, and the score has no such interval."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the score on report."""
        return wilson(round(self.report * self.rows), self.rows) if self.rows else None


def base_scores(context: FineTuningContext, progress: Progress) -> dict[str, BaseScore]:
    """Task -> the score of the model that its fine-tunings start from, measured where it is not
    known."""
    known = read(context.out / FILE)
    todo = [
        task
        for task in context.data
        if task not in known or known[task].context != context.contexts[task]
    ]
    if todo:
        gpus = ray_connection.of_cluster(context.nodes).gpus
        run = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(measured)
        device = "cuda" if gpus else "cpu"
        progress.start("base on tasks", len(todo))
        asked = {
            run.remote(start, context.data[task], start, ("select", "report"), device): task
            for task, start in context.folders.items()
            if task in todo
        }
        waiting = list(asked)
        while waiting:
            (ref,), waiting = ray.wait(waiting)
            task, found = asked[ref], ray.get(ref)
            data = context.data[task]
            rows = len(labels_of(data.rows["report"])) if data.metric == ACCURACY else 0
            known[task] = BaseScore(context.contexts[task], found["select"], found["report"], rows)
            progress.advance("base on tasks", note=f"{task}: {found['select']:.4f}")
        kept = {task: asdict(score) for task, score in known.items()}
        write_text(context.out / FILE, sealed_json(kept))
    return {task: known[task] for task in context.data}


def read(file: Path) -> dict[str, BaseScore]:
    """Scores of a file; none if it is missing or damaged."""
    try:
        content: Mapping[str, Any] = unsealed_json(file.read_bytes())
        return {task: BaseScore(**about) for task, about in content.items()}
    except (OSError, ValueError, TypeError):
        return {}


def verdict(expert: Ingredient, base: BaseScore, rate: float | None, fitting: float | None) -> str:
    """What is to be said of an expert that is no better than its base, with the likely reason and
    the value to try; empty if it is better.

    Args:
        expert: the best of its task.
        base: the score of what it started from.
        rate: the learning rate that it was trained with; None: it has none.
        fitting: the default learning rate for such a base; None: the family's.
    """
    if base.interval is None or expert.report > base.interval[1]:
        return ""
    low, high = base.interval
    place = "below" if expert.report < low else "within"
    said = (
        f"{expert.task}: the expert ({expert.report:.4f}) is no better than the base:"
        f" {place} its 95 % interval, {low:.4f} to {high:.4f}"
    )
    if base.report >= SOLVED:
        return f"{said}; the base solves the task, so there is little to learn"
    if rate is None:
        return said
    if place == "below" or rate >= LARGE_RATE:
        return (
            f"{said}; the learning rate ({rate:g}) is probably too large:"
            f" try finetune.learning_rate: {one_digit(rate / 10)}"
        )
    return (
        f"{said}; the learning rate ({rate:g}) is probably too small:"
        f" try finetune.learning_rate: {one_digit(max(10 * rate, fitting or 0.0))}"
    )


def one_digit(value: float) -> str:
    """A rate with one significant digit.

    >>> one_digit(3e-4), one_digit(1.04e-4), one_digit(0.01)
    ('3e-4', '1e-4', '1e-2')
    """
    power = math.floor(math.log10(value) + 1e-9)
    return f"{value / 10**power:.0f}e{power}"
