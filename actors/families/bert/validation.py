"""What the members of a pool must have in common: architecture, and the classes of classifiers."""

from __future__ import annotations

from actors.checkpoints.checkpoint import Checkpoint
from actors.families.bert.architecture import DENSE, OUT
from actors.families.labels import check_classes
from fusion.errors import InputError

SEVERAL = (
    "; experts of several tasks need a base without a classifier, each of them then keeps its own"
)
"""What members of other classes can do, as the end of a message."""


def check_architecture(base: Checkpoint, expert: Checkpoint) -> None:
    """Raise InputError where an expert's fields, tensors or classes are not the base's.

    Of a base without a classifier, experts may have classifiers of any classes, and a pooler.
    """
    where = f"{expert.name}: {expert.folder / 'config.json'}"
    for field, value in base.fields.items():
        if field != "labels" and expert.fields[field] != value:
            raise InputError(f"{where}: {field}: {expert.fields[field]!r}; the base has {value!r}")
    if base.fields["labels"]:
        check_classes(base.fields["labels"], expert.fields["labels"], where, SEVERAL)
    own = tuple(f"{part[base.fields['model_type']]}." for part in (DENSE, OUT))
    for name, info in expert.tensors.items():
        if name not in base.tensors and not (name.startswith(own) and not base.fields["labels"]):
            raise InputError(f"{expert.name}: {info.file}: tensor {name!r}: not in the base")
    for name in base.tensors:
        if name not in expert.tensors:
            file = next(iter(expert.tensors.values())).file
            raise InputError(f"{expert.name}: {file}: tensor {name!r}: missing; the base has it")
