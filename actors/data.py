"""A sweep's data, ready for replicas: pixels, rows a role, and zero-shot heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from actors.checkpoints import Checkpoint
from actors.experts import Rows, TaskData
from actors.heads import zero_shot_heads
from actors.pixels import open_pixels, prepare
from actors.preprocess import clip_preprocess, read_preprocess
from actors.pretraining import Captioned
from actors.tasks import Role, Splits, Task, assign, partition


def prepare_data(
    base: Checkpoint,
    tasks: Mapping[str, Task],
    splits: Splits,
    roles: Iterable[Role],
    root: Path,
    *,
    select_spelled: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, TaskData]:
    """Decode what is not in the cache yet, and say for each task which rows play which role.

    Needs an initialised Ray when something has to be decoded.

    Raises:
        InputError: a split that is not there or empty; a broken image, by name.
    """
    wanted = list(roles)
    places = {
        name: assign(task, splits, select_spelled=select_spelled) for name, task in tasks.items()
    }
    needed = {(name, places[name][role].split): tasks[name] for name in tasks for role in wanted}
    files = prepare(tasks, list(needed), read_preprocess(base.folder), root, progress)
    heads = zero_shot_heads(base, tasks, root)
    return {
        name: TaskData(
            name,
            heads[name],
            {
                role: rows(files[name, place.split], place.part, splits)
                for role, place in places[name].items()
                if role in wanted
            },
        )
        for name in tasks
    }


def rows(pixels: Path, part: str, splits: Splits) -> Rows:
    """All rows of a source split, or the part of it that fit or val has."""
    if part == "all":
        return Rows(pixels)
    labels = open_pixels(pixels).labels.numpy()
    fit, val = partition(labels, splits.val_fraction, splits.seed)
    return Rows(pixels, fit if part == "fit" else val)


def captioned(
    tasks: Mapping[str, Task],
    splits: Splits,
    image: int,
    root: Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Captioned]:
    """The fit rows of each task with its words, at `image` pixels: what a base is pretrained on."""
    preprocess = clip_preprocess(image)
    places = {name: assign(task, splits)["fit"] for name, task in tasks.items()}
    needed = {(name, place.split): tasks[name] for name, place in places.items()}
    files = prepare(tasks, list(needed), preprocess, root, progress)
    found = {}
    for name, place in places.items():
        pixels = open_pixels(files[name, place.split])
        at = rows(files[name, place.split], place.part, splits).indices
        chosen = slice(None) if at is None else at
        found[name] = Captioned(
            pixels.images[chosen],
            pixels.labels[chosen],
            tasks[name].classnames,
            tasks[name].templates,
        )
    return found
