"""Classes of models with a classifier: `id2label`, compared between models and with tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from actors.data.class_names import normalised
from actors.data.task import Task
from actors.files.documents import shown
from fusion.errors import InputError

SINGLE = "single_label_classification"
"""`problem_type` of classes of which a row has one."""

GENERIC = re.compile(r"LABEL_\d+")
"""What `transformers` calls a class without a name."""


def labels_of(config: Mapping[str, Any], classes: int, file: str) -> tuple[str, ...]:
    """Names of the classes in the order of the classifier's rows, from `id2label`.

    Args:
        config: of a classifier.
        classes: C, rows of the classifier.
        file: for the message.

    Raises:
        InputError: other keys than 0 to C − 1, a name twice, or see `check_labels`.
    """
    given = config.get("id2label")
    if given is None:
        return tuple(f"LABEL_{at}" for at in range(classes))
    if not isinstance(given, Mapping) or sorted(map(str, given)) != sorted(
        map(str, range(classes))
    ):
        keys = list(given) if isinstance(given, Mapping) else given
        raise InputError(
            f"{file}: id2label: {shown(keys)}; the classifier has {classes} classes: keys 0 to"
            f" {classes - 1} needed"
        )
    named = {str(key): str(name) for key, name in given.items()}
    found = tuple(named[str(at)] for at in range(classes))
    if twice := [name for at, name in enumerate(found) if name in found[:at]]:
        raise InputError(f"{file}: id2label: {shown(twice[0])}: the name of two classes")
    check_labels(config, found, file)
    return found


def check_labels(config: Mapping[str, Any], names: Sequence[str], file: str) -> None:
    """Raise InputError where other fields contradict `id2label`, or a row may have several
    classes, or a number."""
    count, back = config.get("num_labels"), config.get("label2id")
    if count is not None and count != len(names):
        raise InputError(f"{file}: num_labels: {shown(count)}; id2label has {len(names)} classes")
    if isinstance(back, Mapping):
        for at, name in enumerate(names):
            if name in back and back[name] != at:
                raise InputError(
                    f"{file}: label2id: {name!r} is {shown(back[name])}; {at} in id2label"
                )
    kind = config.get("problem_type")
    if kind not in (None, SINGLE):
        raise InputError(f"{file}: problem_type: {shown(kind)}; {SINGLE} (or none) allowed")


def check_classes(
    ours: Sequence[str], theirs: Sequence[str], where: str, otherwise: str = ""
) -> None:
    """Raise InputError where a member's classifier has other classes than the base's.

    Args:
        ours: class names of the base, in order.
        theirs: of the member; none: it has no classifier.
        where: how messages begin.
        otherwise: what members of other classes can do, as the end of a message.
    """
    if len(theirs) != len(ours):
        raise InputError(
            f"{where}: id2label: {len(theirs)} classes; the base has {len(ours)}: the classifier is"
            f" fused, so members need the same classes{otherwise}"
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


def check_fit(labels: tuple[str, ...], task: Task, where: str) -> None:
    """Raise InputError where a classifier has other classes than a task, or in another order."""
    if len(labels) != len(task.classnames):
        raise InputError(
            f"{where}: id2label: {len(labels)} classes; task {task.name!r} has"
            f" {len(task.classnames)}"
        )
    whose = f"of task {task.name!r}"
    check_order(labels, task.classnames, f"{where}: id2label", whose, strict=False)
