"""Heads of BERT and RoBERTa: the identity over fused logits, or experts' own classifiers.

A task's head is what the base lacks of a classifier: the classifier alone where the base has a
pooler, else the dense layer before it, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from actors.artifacts.head_file import sound, write_linear_head
from actors.checkpoints.checkpoint import Checkpoint, content_hash, load_config, owner, read
from actors.checkpoints.sources import resolve
from actors.data.task import Task
from actors.families.bert.architecture import DENSE, OUT
from actors.families.bert.inspect import inspected
from actors.families.fused_classifier import (
    check_fused,
    check_same_order,
    identity_fingerprints,
    identity_head,
)
from actors.families.labels import check_fit
from actors.files.fingerprint import Fingerprint, fingerprint
from fusion.errors import InputError, reading
from fusion.logits.head import LinearHead
from fusion.task_vectors.task_vectors import check_finite


def own_heads(base: Checkpoint, experts: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Experts with classifiers that are not fused -> their sources.

    Raises:
        InputError: fused classifiers whose classes have another order than those of an expert
            before.
    """
    if not base.fields["labels"]:
        return {name: each.source for name, each in experts.items() if each.fields["labels"]}
    check_same_order(experts)
    return {}


def check_heads(base: Checkpoint, tasks: Mapping[str, Task]) -> dict[str, Path]:
    """Task -> the weights of the classifier that is its head; none where classifiers are fused.

    Raises:
        InputError: a task of other classes than its classifier, or without one.
    """
    labels = base.fields["labels"]
    if not labels:
        return {name: classifier(base, task).files[0] for name, task in tasks.items()}
    check_fused(base, tasks)
    return {}


def classifier(base: Checkpoint, task: Task) -> Checkpoint:
    """The model whose classifier is a task's head.

    Raises:
        InputError: none is named, or one that does not fit the base or the task.
    """
    source, name = task.source.head, f"tasks.{task.name}.head"
    if source is None:
        raise InputError(
            f"tasks.{task.name}: no expert of its name, whose classifier would be its head; name a"
            f" classifier's folder as {name}, or a base with a classifier, if all experts are of"
            " one task"
        )
    folder = resolve(source, what=name)
    with reading(f"{name}: {folder}"):
        found = inspected(source, folder, load_config(folder, name, ("bert", "roberta")), name)
    for field in ("model_type", "hidden_size"):
        if found.fields[field] != base.fields[field]:
            raise InputError(
                f"{name}: {folder / 'config.json'}: {field}: {found.fields[field]!r}; the base has"
                f" {base.fields[field]!r}"
            )
    if not found.fields["labels"]:
        raise InputError(f"{name}: {folder}: no classifier")
    check_fit(found.fields["labels"], task, f"{name}: {folder / 'config.json'}")
    return found


def head_fingerprints(base: Checkpoint, tasks: Mapping[str, Task]) -> dict[str, Fingerprint]:
    """Task -> fingerprint of the classifier that is its head; of its classes where it is fused.

    Raises:
        InputError: see `check_heads`.
    """
    check_heads(base, tasks)
    if base.fields["labels"]:
        return identity_fingerprints(tasks)
    pooled = parts(base)
    return {
        name: fingerprint("classifier-head-1", content_hash(classifier(base, task)), pooled)
        for name, task in tasks.items()
    }


def parts(base: Checkpoint) -> list[str]:
    """Layers of a classifier that the base does not have: dense and out, or out."""
    kind = base.fields["model_type"]
    return [layer for layer in (DENSE[kind], OUT[kind]) if f"{layer}.weight" not in base.tensors]


def task_heads(base: Checkpoint, tasks: Mapping[str, Task], root: Path) -> dict[str, Path]:
    """Each task's head in the cache, made where missing.

    Raises:
        InputError: see `check_heads`.
    """
    found = {}
    for name, key in head_fingerprints(base, tasks).items():
        found[name] = root / "heads" / f"{key}.safetensors"
        if not sound(found[name]):
            head = head_of(base, tasks[name])
            write_linear_head(found[name], head.weight, head.bias, head.before)
    return found


def head_of(base: Checkpoint, task: Task) -> LinearHead:
    """A task's head, in float32.

    Raises:
        InputError: NaN or infinity in the classifier.
    """
    if base.fields["labels"]:
        return identity_head(task)
    layers = parts(base)
    names = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    model = classifier(base, task)
    tensors = {}
    for name, tensor in read(model, names):
        check_finite(tensor, name, owner(model, name))
        tensors[name] = tensor.float()

    def layer(name: str) -> tuple[Tensor, Tensor]:
        return tensors[f"{name}.weight"], tensors[f"{name}.bias"]

    before = LinearHead(*layer(layers[0])) if len(layers) > 1 else None
    return LinearHead(*layer(layers[-1]), before)
