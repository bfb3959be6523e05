"""What the members of a pool of image classifiers must have in common: architecture and classes."""

from __future__ import annotations

from actors.checkpoints.checkpoint import Checkpoint
from actors.families.labels import check_classes
from fusion.errors import InputError


def check_base(base: Checkpoint) -> None:
    """Raise InputError where a base has no classifier."""
    if not base.fields["labels"]:
        raise InputError(
            f"{base.name}: {base.folder}: no classifier; it is fused with the rest of the model, so"
            " the base must be a …ForImageClassification with the experts' classes"
        )


def check_architecture(base: Checkpoint, expert: Checkpoint) -> None:
    """Raise InputError where an expert's classes, fields or tensors are not the base's."""
    where = f"{expert.name}: {expert.folder / 'config.json'}"
    for field, value in base.fields.items():
        if field != "labels" and expert.fields.get(field) != value:
            theirs = expert.fields.get(field)
            raise InputError(f"{where}: {field}: {theirs!r}; the base has {value!r}")
    check_classes(base.fields["labels"], expert.fields["labels"], where)
