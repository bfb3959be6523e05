"""Evaluate merged models at points in the space of the task vectors; each result is saved at once.

A point is one coefficient a task vector, θ = θ₀ + Σ c_t τ_t: a coding file of a few bytes, which
the replicas merge into their resident models. No model is ever written. An analysis that is killed
goes on from the file of points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actors.artifacts.coding_file import dump_shares
from actors.artifacts.recipe import Recipe
from actors.data.row_file import open_labels
from actors.data.task_rows import Rows, TaskData
from actors.experts.protocol import Experts
from actors.files.documents import checked, parse_json, read_bytes
from fusion.errors import InputError
from sweeps.console.progress import Progress
from sweeps.results.ledger import write_text
from sweeps.spec.trial_key import derive_seed

METHOD = "greedy_soup"
"""What a point is a recipe of: any method whose result is a coding would do."""

PROBE = "probe"
"""The role of the rows that long walks are measured on: some of select's, the same for all."""

AHEAD = 4
"""Points submitted at a time, for each replica; a kill can lose this many."""

Metrics = Mapping[str, float]


class Points:
    """Evaluate merged models at points; each point is evaluated once.

    Args:
        experts: who evaluates.
        names: of the task vectors: the T axis.
        role: whose rows they are measured on.
        file: where they are kept; its name says all that they depend on.
        progress: shows how far it is.
    """

    def __init__(
        self, experts: Experts, names: Sequence[str], role: str, file: Path, progress: Progress
    ) -> None:
        self.experts, self.names, self.role = experts, tuple(names), role
        self.file, self.progress = file, progress
        self.known: dict[str, dict[str, float]] = restored(file)

    def of(self, coefficients: Mapping[str, float]) -> Tensor:
        """A point [T] with these coefficients, others 0; float64."""
        point = torch.zeros(len(self.names), dtype=torch.float64)
        for name, value in coefficients.items():
            point[self.names.index(name)] += value
        return point

    def key(self, point: Tensor) -> str:
        """Name of a point: `a*0.5 b*0.5`; empty for the base."""
        return " ".join(
            f"{name}*{value:.12g}"
            for name, value in zip(self.names, point.tolist(), strict=True)
            if value
        )

    def recipe(self, point: Tensor) -> Recipe:
        """Recipe of a point's model."""
        return Recipe(METHOD, {}, dump_shares(point.tolist(), self.names))

    def __call__(self, points: Sequence[Tensor], phase: str) -> list[Metrics]:
        """The metrics of each point [T]: those that are not known yet are evaluated, some at a
        time, and written to the file before the next are asked for.

        Args:
            points: where.
            phase: what the user sees being done.
        """
        keys = [self.key(point) for point in points]
        new = {k: p for k, p in zip(keys, points, strict=True) if k not in self.known}
        self.progress.start(phase, len(points))
        self.progress.advance(phase, len(points) - len(new))
        todo, step = list(new.items()), AHEAD * max(1, self.experts.replicas)
        for start in range(0, len(todo), step):
            chunk = todo[start : start + step]
            found = self.experts.evaluate_all([self.recipe(p) for _, p in chunk], self.role)
            for (key, _), evaluation in zip(chunk, found, strict=True):
                self.known[key] = evaluation.metrics()
            write_text(self.file, json.dumps(self.known))
            last = found[-1].metrics()["acc/mean"]
            self.progress.advance(phase, len(chunk), note=f"acc/mean {last:.4f}")
        return [self.known[key] for key in keys]


def restored(file: Path) -> dict[str, dict[str, float]]:
    """Points of a killed analysis; a damaged file counts as empty."""
    try:
        content = parse_json(read_bytes(file), str(file), finite=False)
        return checked(dict[str, dict[str, float]], content, str(file))
    except InputError:
        return {}


def with_probe(data: Mapping[str, TaskData], rows: int, seed: int) -> dict[str, TaskData]:
    """Add a role `PROBE` to each task: at most `rows` of its select rows.

    Which rows follows from seed and task alone. `rows` of 0: all of them.
    """
    return {
        name: replace(task, rows={**task.rows, PROBE: some(task.rows["select"], rows, seed, name)})
        for name, task in data.items()
    }


def some(inputs: Rows, rows: int, seed: int, task: str) -> Rows:
    """A fixed random sample of rows, in their order."""
    there = inputs.indices
    if there is None:
        there = np.arange(len(open_labels(inputs.file)), dtype=np.int64)
    if rows == 0 or len(there) <= rows:
        return inputs
    rng = np.random.default_rng(derive_seed(seed, PROBE, task))
    return replace(inputs, indices=np.sort(rng.choice(there, size=rows, replace=False)))


def labels_of(task: TaskData, role: str) -> Tensor:
    """Labels int64 [N] of a task's rows in a role."""
    rows = task.rows[role]
    labels = open_labels(rows.file)
    return labels if rows.indices is None else labels[torch.from_numpy(rows.indices)]


def mixture(points: Points, first: str, second: str, alpha: float) -> Tensor:
    """The point (1 − α)·θ_first + α·θ_second; exactly one model at α = 0 and 1."""
    return points.of({first: 1 - alpha, second: alpha})


def number(value: float) -> float | None:
    """The value; None if it is not finite."""
    return value if math.isfinite(value) else None
