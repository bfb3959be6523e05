"""Heads of image classifiers: the identity, since the output is logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from actors.artifacts.head_file import sound, write_linear_head
from actors.checkpoints.checkpoint import Checkpoint
from actors.data.task import Task
from actors.families.fused_classifier import check_fused, identity_fingerprints, identity_head
from actors.files.fingerprint import Fingerprint


def head_fingerprints(base: Checkpoint, tasks: Mapping[str, Task]) -> dict[str, Fingerprint]:
    """Task -> fingerprint of its identity.

    Raises:
        InputError: a task with other classes than the model, or with a head.
    """
    check_fused(base, tasks)
    return identity_fingerprints(tasks)


def task_heads(base: Checkpoint, tasks: Mapping[str, Task], root: Path) -> dict[str, Path]:
    """Each task's head in the cache, made where missing.

    Raises:
        InputError: see `head_fingerprints`.
    """
    found = {}
    for name, key in head_fingerprints(base, tasks).items():
        found[name] = root / "heads" / f"{key}.safetensors"
        if not sound(found[name]):
            head = identity_head(tasks[name])
            write_linear_head(found[name], head.weight, head.bias, head.before)
    return found
