"""Prepare a sweep's data for replicas: prepared rows, rows by role, heads, gate features."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.protocol import Inputs
from actors.data.task import Role, Splits, Task, assign, partition
from actors.data.task_rows import Captioned, Rows, TaskData
from actors.families.registry import family_in
from actors.gate_features.extractor import Extractor
from actors.gate_features.feature_cache import prepare_features

ROLES: tuple[Role, ...] = ("fit", "select", "report")

MEASURED: tuple[Role, ...] = ("report",)
"""Roles of a task that is only measured."""


def prepare_data(
    base: Checkpoint,
    tasks: Mapping[str, Task],
    splits: Splits,
    roles: Iterable[Role],
    root: Path,
    *,
    select_spelled: bool = False,
    extractors: Collection[Extractor] = (),
    progress: Callable[[int, int], None] | None = None,
    device: str = "cpu",
    unseen: Collection[str] = (),
) -> dict[str, TaskData]:
    """Prepare missing rows, heads and features, and assign each task's rows to roles.

    Args:
        base: the base, whose family prepares rows and makes heads.
        tasks: name -> opened task.
        splits: names of the splits for each role.
        roles: roles to prepare.
        root: the cache folder.
        select_spelled: whether the spec itself gives the split `select`.
        extractors: extractors of gates, whose features are computed for all these rows.
        progress: called with the rows done and the total.
        device: device on which features are computed.
        unseen: tasks that have only report rows.

    Raises:
        InputError: a missing or empty split; a broken row, by name.
    """
    wanted = list(roles)
    places = {
        name: assign(
            task, splits, select_spelled=select_spelled, roles=MEASURED if name in unseen else ROLES
        )
        for name, task in tasks.items()
    }
    needed = {
        (name, place.split): tasks[name]
        for name in tasks
        for role, place in places[name].items()
        if role in wanted
    }
    family = family_in(base)
    inputs = family.inputs(base)
    files = inputs.prepare(tasks, list(needed), root, progress)
    heads = family.heads(base, tasks, root)
    features = {
        extractor.fingerprint: prepare_features(
            extractor, tasks, list(needed), root, progress, device=device
        )
        for extractor in extractors
    }
    return {
        name: TaskData(
            name,
            heads[name],
            {
                role: replace(
                    rows(files[name, place.split], place.part, splits, inputs),
                    features={key: found[name, place.split] for key, found in features.items()},
                    split=place.split,
                )
                for role, place in places[name].items()
                if role in wanted
            },
            name in unseen,
            tasks[name].metric,
            None if (words := tasks[name].wording) is None else words.values,
        )
        for name in tasks
    }


def rows(file: Path, part: str, splits: Splits, inputs: Inputs) -> Rows:
    """All rows of a source split, or its fit or val part."""
    if part == "all":
        return Rows(file)
    labels = inputs.open(file).labels.numpy()
    fit, val = partition(labels, splits.val_fraction, splits.seed)
    return Rows(file, fit if part == "fit" else val)


def captioned(
    tasks: Mapping[str, Task],
    splits: Splits,
    inputs: Inputs,
    root: Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Captioned]:
    """The fit rows of each task with class names and templates, for pretraining a base."""
    places = {name: assign(task, splits)["fit"] for name, task in tasks.items()}
    needed = {(name, place.split): tasks[name] for name, place in places.items()}
    files = inputs.prepare(tasks, list(needed), root, progress)
    found = {}
    for name, place in places.items():
        opened = inputs.open(files[name, place.split])
        at = rows(files[name, place.split], place.part, splits, inputs).indices
        chosen = torch.arange(len(opened.labels)) if at is None else torch.from_numpy(at)
        found[name] = Captioned(
            opened.take(chosen)["pixels"],
            opened.labels[chosen],
            tasks[name].classnames,
            tasks[name].templates,
        )
    return found
