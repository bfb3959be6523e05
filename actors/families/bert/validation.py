"""What the members of a pool must have in common: architecture, and the classes of classifiers."""

from __future__ import annotations

from collections.abc import Sequence

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.class_names import normalised
from actors.families.bert.architecture import DENSE, GENERIC, OUT
from fusion.errors import InputError


def check_architecture(base: Checkpoint, expert: Checkpoint) -> None:
    """Raise InputError where an expert's fields, tensors or classes are not the base's.

    Of a base without a classifier, experts may have classifiers of any classes, and a pooler.
    """
    where = f"{expert.name}: {expert.folder / 'config.json'}"
    for field, value in base.fields.items():
        if field != "labels" and expert.fields[field] != value:
            raise InputError(f"{where}: {field}: {expert.fields[field]!r}; the base has {value!r}")
    if base.fields["labels"]:
        check_classes(base.fields["labels"], expert.fields["labels"], where)
    own = tuple(f"{part[base.fields['model_type']]}." for part in (DENSE, OUT))
    for name, info in expert.tensors.items():
        if name not in base.tensors and not (name.startswith(own) and not base.fields["labels"]):
            raise InputError(f"{expert.name}: {info.file}: tensor {name!r}: not in the base")
    for name in base.tensors:
        if name not in expert.tensors:
            file = next(iter(expert.tensors.values())).file
            raise InputError(f"{expert.name}: {file}: tensor {name!r}: missing; the base has it")


def check_classes(ours: Sequence[str], theirs: Sequence[str], where: str) -> None:
    """Raise InputError where a member's classifier has other classes than the base's.

    Args:
        ours: class names of the base, in order.
        theirs: of the member; none: it has no classifier.
        where: how messages begin.
    """
    if len(theirs) != len(ours):
        raise InputError(
            f"{where}: id2label: {len(theirs)} classes; the base has {len(ours)}: the classifier is"
            " fused, so members need the same classes; experts of several tasks need a base without"
            " a classifier, each of them then keeps its own"
        )
    check_order(theirs, ours, f"{where}: id2label", "in the base", strict=True)


def check_order(
    theirs: Sequence[str], ours: Sequence[str], where: str, whose: str, *, strict: bool
) -> None:
    """Raise InputError where a class is at another place; `strict`: or has another name.

    Without `strict`, a class whose name the other side lacks may be the same class under another
    name. Names are compared as those of data sets are; `LABEL_0` and such are no names.
    """
    if generic(ours) or generic(theirs):
        return
    first, second = [[normalised(name) for name in names] for names in (theirs, ours)]
    moved = [
        at
        for at, (one, other) in enumerate(zip(first, second, strict=True))
        if one != other and (strict or one in second)
    ]
    if not moved:
        return
    at = moved[0]
    kind = (
        "another order of the same classes"
        if set(first) == set(second) or not strict
        else "other classes"
    )
    raise InputError(f"{where}: class {at} is {theirs[at]!r}, {whose} {ours[at]!r}: {kind}")


def generic(names: Sequence[str]) -> bool:
    """Whether classes have no names of their own."""
    return all(GENERIC.fullmatch(name) for name in names)
