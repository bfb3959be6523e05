"""Classifiers that are fused with the rest of a model: outputs are logits, heads identities."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.task import Task
from actors.families.labels import check_fit, check_order, generic
from actors.files.fingerprint import Fingerprint, fingerprint
from fusion.errors import InputError
from fusion.logits.head import LinearHead


def check_same_order(experts: Mapping[str, Checkpoint]) -> None:
    """Raise InputError where classes have another order than those of an expert before."""
    named = [each for each in experts.values() if not generic(each.fields["labels"])]
    for each in named[1:]:
        where = f"{each.name}: {each.folder / 'config.json'}: id2label"
        ours = named[0].fields["labels"]
        check_order(each.fields["labels"], ours, where, f"of {named[0].name}", strict=True)


def check_fused(base: Checkpoint, tasks: Mapping[str, Task]) -> None:
    """Raise InputError where a task names a head, or has other classes than the base."""
    for task in tasks.values():
        if task.source.head is not None:
            raise InputError(
                f"tasks.{task.name}: head: {task.source.head!r}; the classifier is part of the"
                " fused model: no head allowed"
            )
        check_fit(base.fields["labels"], task, f"{base.name}: {base.folder / 'config.json'}")


def identity_fingerprints(tasks: Mapping[str, Task]) -> dict[str, Fingerprint]:
    """Task -> fingerprint of its identity head."""
    return {name: fingerprint("identity-head-1", len(t.classnames)) for name, t in tasks.items()}


def identity_head(task: Task) -> LinearHead:
    """The head that keeps logits [B, C] as they are."""
    return LinearHead(torch.eye(len(task.classnames)))
