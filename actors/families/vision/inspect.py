"""Image classifiers' checkpoints: sort a file's tensors into weights, running statistics, counters.

Canonical names are those of `ViTModel` or `ResNetModel` in files of the hub, and of the classifier,
whatever version of `transformers` wrote the file. A ViT's pooler and mask token are not read: no
classifier has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.checkpoints.checkpoint import Checkpoint, TensorInfo, headers
from actors.families.images.resnet_architecture import COUNTER
from actors.families.labels import labels_of
from actors.families.tensors import by_name, check_there, shaped
from actors.families.vision.architecture import (
    OUT,
    body_tensors,
    canonical,
    classifier_fields,
    is_running,
    width_of,
)
from actors.files.documents import shown
from fusion.errors import InputError

CLASSIFIES = "ForImageClassification"

UNREAD = ("pooler.", "embeddings.mask_token")


def inspected(source: str, folder: Path, config: Mapping[str, Any], name: str) -> Checkpoint:
    """The classifier in a folder, or the body of one, by its headers.

    Its `fields` are the configuration's (see `classifier_fields`), and `labels`: the names of its
    classes, none without a classifier. `rest` holds batch norm's running statistics, `buffers` its
    counters.

    Raises:
        InputError: missing, unknown or mis-shaped tensors; another kind of classifier; see also
            `headers`, `classifier_fields` and `labels_of`.
    """
    found = headers(folder, config, name, f"ViT{CLASSIFIES}")
    file = f"{name}: {folder / 'config.json'}"
    fields = classifier_fields(config, file)
    named = ((canonical(key), info) for key, info in found.items())
    every = by_name(((short, info) for short, info in named if not short.startswith(UNREAD)), name)
    counters = {key: info for key, info in every.items() if key.endswith(COUNTER)}
    tensors = {key: info for key, info in every.items() if key not in counters}
    classes = class_count(tensors, f"{OUT[fields['model_type']]}.weight")
    fields["labels"] = labels_of(config, classes, file) if classes else ()
    if classes:
        check_classifies(config, file)
    shapes = {**body_tensors(fields), **head_tensors(fields, tensors)}
    check_there(shapes, found, tensors, name)
    ordered = shaped(tensors, shapes, name, folder)
    weights = {key: info for key, info in ordered.items() if not is_running(key)}
    running = {key: info for key, info in ordered.items() if is_running(key)}
    return Checkpoint(name, source, folder, config, weights, running, counters, fields=fields)


def class_count(tensors: Mapping[str, TensorInfo], weight: str) -> int:
    """C, the rows of the classifier; 0 without one."""
    info = tensors.get(weight)
    return info.shape[0] if info is not None and info.shape else 0


def head_tensors(
    fields: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of the classifier's tensors; none if the model has none of them."""
    out, classes = OUT[fields["model_type"]], len(fields["labels"])
    shapes = {f"{out}.weight": (classes, width_of(fields)), f"{out}.bias": (classes,)}
    return {} if shapes.keys().isdisjoint(tensors) else shapes


def check_classifies(config: Mapping[str, Any], file: str) -> None:
    """Raise InputError where a configuration names another kind of model."""
    named = config.get("architectures")
    if isinstance(named, list) and named and not str(named[0]).endswith(CLASSIFIES):
        raise InputError(
            f"{file}: architectures: {shown(named)}; a classifier of images (…{CLASSIFIES}) needed"
        )
