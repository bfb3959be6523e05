"""The models that fine-tunings start from: the base, or the base with a classifier of each task's.

`<out>/starts/<task>/` is the start of a task, in the hub's layout; `start.json` beside its weights
says what it was made from. It is the base of a pool of the task's ingredients.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.checkpoints.checkpoint import Checkpoint, content_hash
from actors.data.task import Task
from actors.families.protocol import Training
from actors.families.registry import inspect
from actors.files.documents import read_json
from actors.training.optimizer_loop import staged
from fusion.errors import InputError
from sweeps.spec.trial_key import derive_seed

MADE_FROM = "start.json"


def start_folder(out: Path, task: str) -> Path:
    """Folder of a task's start."""
    return out / "starts" / task


def make_starts(
    training: Training, base: Checkpoint, tasks: Mapping[str, Task], seed: int, out: Path
) -> dict[str, Checkpoint]:
    """Task -> the model that its fine-tunings start from, made where it is missing.

    A start of another base, seed or order of classes is replaced.

    Args:
        training: of the base's family.
        base: the base.
        tasks: name -> opened task.
        seed: of the training file.
        out: its folder.
    """
    if training.start is None:
        return dict.fromkeys(tasks, base)
    found = {}
    for name, task in tasks.items():
        folder, own = start_folder(out, name), derive_seed(seed, "start", name)
        about = {"base": content_hash(base), "seed": own, "classnames": list(task.classnames)}
        if made_from(folder) != about:
            shutil.rmtree(folder, ignore_errors=True)
            with staged(folder) as part:
                training.start(base, task, own, part)
                (part / MADE_FROM).write_text(json.dumps(about, indent=1) + "\n")
        found[name] = inspect(str(folder), f"the start of {name}")
    return found


def made_from(folder: Path) -> Any:
    """What a start was made from; None: it is not there, or damaged."""
    try:
        return read_json(folder / MADE_FROM)
    except InputError:
        return None
