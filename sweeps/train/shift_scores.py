"""Evaluate kept ingredients on shift sets: corrupted report rows, or other data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from actors.data.task_rows import Rows
from actors.files.hashes import hash_text
from sweeps.cluster import ray_connection
from sweeps.console.progress import Progress
from sweeps.results.ledger import write_text
from sweeps.train.fine_tuning_context import FineTuningContext
from sweeps.train.ingredients import Ingredient, read_scores
from sweeps.train.trial import measured


def score_shifts(
    places: Sequence[tuple[Ingredient, Path]],
    context: FineTuningContext,
    rows: Mapping[str, Mapping[str, Rows]],
    progress: Progress,
) -> None:
    """Evaluate kept ingredients on shift sets that their `scores.json` lacks."""
    wanted = []
    for each, place in places:
        marks = {name: mark(found) for name, found in rows[each.task].items()}
        known = read_scores(place).get("shift_sets", {})
        todo = {name: one for name, one in marks.items() if known.get(name) != one}
        if todo:
            task = replace(context.data[each.task], rows={n: rows[each.task][n] for n in todo})
            wanted.append((task, place, todo))
    if not wanted:
        return
    gpus = ray_connection.of_cluster(context.nodes).gpus
    run = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(measured)
    device = "cuda" if gpus else "cpu"
    asked: dict[Any, tuple[Path, dict[str, str]]] = {
        run.remote(context.folders[task.name], task, place, list(todo), device): (place, todo)
        for task, place, todo in wanted
    }
    progress.start("shifts", len(asked))
    waiting = list(asked)
    while waiting:
        (ref,), waiting = ray.wait(waiting)
        place, marks = asked[ref]
        keep_scores(place, ray.get(ref), marks)
        progress.advance("shifts")


def mark(rows: Rows) -> str:
    """Fingerprint of a score on a shift set; a pixel file's name is a content hash."""
    return hash_text("shift", rows.file.name)[:16]


def keep_scores(place: Path, found: Mapping[str, float], marks: Mapping[str, str]) -> None:
    """Add scores on shift sets to `scores.json`."""
    scores = read_scores(place)
    scores["shifts"] = {**scores.get("shifts", {}), **found}
    scores["shift_sets"] = {**scores.get("shift_sets", {}), **marks}
    write_text(place / "scores.json", json.dumps(scores, indent=1))
