"""Synthetic rows of tasks: opened, prepared, filtered by the base, and given to fine-tunings.

`<out>/synthetic.json` says of each task how many rows there are and which pass the filters.

Axes: N synthetic rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from actors.artifacts.recipe import BASE
from actors.data.task import Kind, Task, TaskSource, open_task
from actors.data.task_rows import SYNTHETIC, Rows, TaskData
from actors.experts.embedding_cache import embedding_cache
from actors.experts.local import local_experts
from actors.families.protocol import Training
from actors.families.registry import family_in
from actors.files.cache_dir import cache_dir
from actors.files.fingerprint import Fingerprint, fingerprint
from actors.fleet.transport import fetched
from actors.pool.pool import open_pool
from fusion.errors import InputError
from fusion.logits.row_filters import apart, confident
from sweeps.cluster import ray_connection
from sweeps.console.progress import Progress
from sweeps.planning.prepared import decisive
from sweeps.results.ledger import write_text
from sweeps.spec.sweep import PlacementSpec
from sweeps.train.fine_tuning_context import FineTuningContext
from sweeps.train.spec import SyntheticSpec, TrainSpec

FILE = "synthetic.json"

SHARE = "synthetic_share"
"""The hyper-parameter of families that train on synthetic rows."""


@dataclass(frozen=True)
class Counts:
    """How many synthetic rows of a task pass its filters."""

    rows: int
    confident: int
    """Those that pass `clip_filter`, or all without it."""
    apart: int
    """Those that pass `real_filter`, or all without it."""
    kept: int


def open_synthetic(
    spec: TrainSpec, tasks: Mapping[str, Task], training: Training, kind: Kind
) -> dict[str, Task]:
    """Task -> its synthetic data set, opened.

    Raises:
        InputError: a family whose models have no zero-shot head, other classes than the task's, or
            no split to train on.
    """
    found = {}
    for name, task in tasks.items():
        given = spec.tasks[name].synthetic
        if given is None:
            continue
        what = f"tasks.{name}.synthetic"
        if SHARE not in {option.name for option in fields(training.options)}:
            raise InputError(f"{what}: the base has no zero-shot head, by which rows are filtered")
        source = TaskSource(
            name, given.dataset, spec.tasks[name].image, spec.tasks[name].label,
            classnames=task.classnames,
        )  # fmt: skip
        try:
            found[name] = open_task(source, kind)
            split_of(found[name])
        except InputError as error:
            raise InputError(f"{what}: {error}") from None
    return found


def split_of(task: Task) -> str:
    """The split that is trained on: `train`, or the only one."""
    if "train" in task.splits or len(task.splits) > 1:
        task.split("train")
        return "train"
    return next(iter(task.splits))


def depends_on(spec: TrainSpec, synthetic: Mapping[str, Task], name: str) -> list[Fingerprint]:
    """What a task's results depend on beside its own rows; empty without synthetic ones."""
    given = spec.tasks[name].synthetic
    if given is None:
        return []
    filters = given.model_dump(exclude={"dataset"})
    return [fingerprint("synthetic-1", synthetic[name].fingerprint, filters)]


def add_synthetic(
    context: FineTuningContext, synthetic: Mapping[str, Task], progress: Progress
) -> FineTuningContext:
    """The context with the kept rows of each task's synthetic data, in the role `synthetic`.

    Raises:
        InputError: a row that cannot be read, or no row that passes the filters.
    """
    if not synthetic:
        return context
    inputs = family_in(context.base).inputs(context.base)
    needed = [(name, split_of(task)) for name, task in synthetic.items()]
    files = inputs.prepare(synthetic, needed, cache_dir())
    gpus = ray_connection.of_cluster(context.nodes).gpus
    run = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(filtered)
    device = "cuda" if gpus else "cpu"
    asked, data = {}, dict(context.data)
    for name, split in needed:
        rows = {**context.data[name].rows, SYNTHETIC: Rows(files[name, split], split=split)}
        data[name] = replace(context.data[name], rows=rows)
        given = context.spec.tasks[name].synthetic
        asked[name] = run.remote(context.base.folder, data[name], given, cache_dir(), device)
    counted: dict[str, Any] = {}
    for name, ref in asked.items():
        kept, counts = fetched(ref)
        if not counts.kept:
            raise InputError(
                f"tasks.{name}.synthetic: none of {counts.rows:,} rows passes the filters:"
                f" {counts.confident:,} pass clip_filter, {counts.apart:,} real_filter"
            )
        rows = {**data[name].rows, SYNTHETIC: replace(data[name].rows[SYNTHETIC], indices=kept)}
        data[name] = replace(data[name], rows=rows)
        counted[name] = asdict(counts)
        progress.say(f"{name}: {counts.kept:,} of {counts.rows:,} synthetic rows are kept")
    write_text(context.out / FILE, json.dumps(counted, indent=1) + "\n")
    return replace(context, data=data)


def filtered(
    base: Path, task: TaskData, given: SyntheticSpec, root: Path, device: str = "cpu"
) -> tuple[NDArray[np.int64], Counts]:
    """Numbers of a task's synthetic rows that pass the filters, in order, and how many do.

    Args:
        base: folder of the base.
        task: with rows of fit and synthetic ones, and the zero-shot head.
        given: the filters.
        root: the cache folder, for embeddings.
        device: device that computes them.
    """
    pool = open_pool(str(base), {task.name: str(base)})
    cache = embedding_cache(root, pool, device, decisive(PlacementSpec()))
    runner = local_experts(pool, {task.name: task}, cache, device=device).runner
    labels = runner.labels(task.name, SYNTHETIC)
    passing = {"clip": torch.ones(len(labels), dtype=torch.bool)}
    passing["real"] = passing["clip"]
    if given.clip_filter:
        probabilities = runner.logits_of(BASE, task.name, SYNTHETIC).softmax(1)
        least, most = given.threshold, given.per_class
        passing["clip"] = confident(probabilities, labels, least=least, most=most)
    if given.real_filter:
        passing["real"] = apart(
            runner.embedded(BASE, task.name, SYNTHETIC),
            labels,
            runner.embedded(BASE, task.name, "fit"),
            runner.labels(task.name, "fit"),
        )
    kept = torch.nonzero(passing["clip"] & passing["real"]).flatten().numpy()
    clip, real = (int(each.sum()) for each in passing.values())
    return kept, Counts(len(labels), clip, real, len(kept))
