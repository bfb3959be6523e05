"""Scores of kept ingredients on named shift sets: the report rows corrupted, or other data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from actors.checkpoints import Checkpoint
from actors.experts import Rows, TaskData
from actors.hashes import hash_text
from actors.pixels import prepare
from actors.preprocess import read_preprocess
from actors.shifts import corrupted
from actors.sources import cache_dir
from actors.tasks import Task, TaskSource, open_task
from fusion.errors import InputError
from sweeps import cluster
from sweeps.ingredients import Ingredient, read_scores
from sweeps.ledger import write_text
from sweeps.progress import Progress
from sweeps.trainspec import TrainSpec
from sweeps.traintrial import measured
from sweeps.traintrials import Yard


def open_shifts(spec: TrainSpec, tasks: Mapping[str, Task]) -> dict[tuple[str, str], Task]:
    """(shift, task) -> the other data set; nothing is decoded.

    Raises:
        InputError: data that are not there, or have no rows to report on.
    """
    found = {}
    for name, shift in spec.shifts.items():
        if shift.dataset is None:
            continue
        for task in [shift.task] if shift.task else tasks:
            source = TaskSource(
                f"{task} (shifts.{name})",
                shift.dataset,
                shift.image,
                shift.label,
                classnames=tasks[task].classnames,
            )
            found[name, task] = open_task(source)
            split_of(found[name, task], spec.splits.report, name)
    return found


def split_of(task: Task, report: str, name: str) -> str:
    """The split of another data set that is reported on: of the same name, or its only one."""
    if report in task.splits:
        return report
    if len(task.splits) == 1:
        return next(iter(task.splits))
    raise InputError(
        f"shifts.{name}.dataset: {task.dataset}: no split {report!r}; there:"
        f" {', '.join(task.splits)}"
    )


def shift_rows(
    spec: TrainSpec,
    base: Checkpoint,
    data: Mapping[str, TaskData],
    others: Mapping[tuple[str, str], Task],
) -> dict[str, dict[str, Rows]]:
    """Task -> shift -> its rows, prepared.

    Raises:
        InputError: see `corrupted` and `prepare`.
    """
    root = cache_dir()
    found: dict[str, dict[str, Rows]] = {task: {} for task in data}
    for name, shift in spec.shifts.items():
        for task, each in data.items():
            if shift.corruption is not None and shift.task in (None, task):
                found[task][name] = corrupted(
                    each.rows["report"], shift.corruption, shift.severity, root, seed=shift.seed
                )
            elif (name, task) in others:
                other = others[name, task]
                split = split_of(other, spec.splits.report, name)
                files = prepare(
                    {other.name: other}, [(other.name, split)], read_preprocess(base.folder), root
                )
                found[task][name] = Rows(files[other.name, split])
    return found


def score_shifts(
    places: Sequence[tuple[Ingredient, Path]],
    yard: Yard,
    rows: Mapping[str, Mapping[str, Rows]],
    progress: Progress,
) -> None:
    """Measure what `scores.json` of kept ingredients lacks; one that is there is not made again."""
    wanted = []
    for each, place in places:
        marks = {name: mark(found) for name, found in rows[each.task].items()}
        known = read_scores(place).get("shift_sets", {})
        todo = {name: one for name, one in marks.items() if known.get(name) != one}
        if todo:
            task = replace(yard.data[each.task], rows={n: rows[each.task][n] for n in todo})
            wanted.append((task, place, todo))
    if not wanted:
        return
    gpus = cluster.of_cluster(yard.nodes).gpus
    run = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(measured)
    device = "cuda" if gpus else "cpu"
    asked: dict[Any, tuple[Path, dict[str, str]]] = {
        run.remote(yard.base.folder, task, place, list(todo), device): (place, todo)
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
    """What a score on a shift set depends on; a pixel file's name is a content hash."""
    return hash_text("shift", rows.pixels.name)[:16]


def keep_scores(place: Path, found: Mapping[str, float], marks: Mapping[str, str]) -> None:
    """Add scores on shifts to `scores.json`."""
    scores = read_scores(place)
    scores["shifts"] = {**scores.get("shifts", {}), **found}
    scores["shift_sets"] = {**scores.get("shift_sets", {}), **marks}
    write_text(place / "scores.json", json.dumps(scores, indent=1))
