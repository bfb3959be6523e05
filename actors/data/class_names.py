"""What the classes of a task are called: names are matched to labels by identity.

Four lists may say it: the spec's, the data's own (ClassLabel, folders, texts), that of a
`meta.json` beside the data, and the built-in one of the task's name. The first of data and
`meta.json` says which label a name has; a list without names of the data beside it is ordered by
label number. Two lists that are used together must hold the same names, after normalisation: case,
Unicode form, blanks, `_`, `-` and `/` do not count, nor does SUN397's leading `/a/`. Names that are
the whole numbers 0 to N−1 stand for their labels, whatever the other list calls them.

The spec's list alone may call classes something else. It is ordered by label number; a name that
the data have for another label is refused there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusion.errors import InputError

BETWEEN = re.compile(r"[\s_\-/]+")


@dataclass(frozen=True)
class Naming:
    """Class names in the order of their labels, and where they come from."""

    names: tuple[str, ...]
    origin: str
    """Names and their order, in words."""


def normalised(name: str) -> str:
    """A name without what two spellings of it may differ in.

    >>> normalised("Annual_Crop") == normalised("annual crop") == normalised("AnnualCrop")
    True
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    text = re.sub(r"^/[a-z]/", "", text)
    return BETWEEN.sub("", text) or text


def keys(names: Sequence[str]) -> list[str]:
    """Normalised names; the names themselves where normalising would make two alike."""
    found = [normalised(name) for name in names]
    return found if len(set(found)) == len(names) else list(names)


def numbered(names: Sequence[str]) -> bool:
    """Whether names are the labels themselves: whole numbers from 0, each at its place."""
    digits = all(name.isascii() and name.isdecimal() for name in names)
    return digits and [int(name) for name in names] == list(range(len(names)))


def quoted(names: Sequence[str]) -> str:
    """Up to five names, as messages show them."""
    shown = ", ".join(repr(name[:40]) for name in names[:5])
    return f"{len(names)} ({shown}{', …' if len(names) > 5 else ''})"


def aligned(
    names: Sequence[str],
    own: Sequence[str],
    about: tuple[str, str],
    what: str,
    others: Mapping[str, str],
) -> tuple[str, ...]:
    """`names` in the order of the data's `own`, by identity.

    Args:
        names: of a list that belongs to the task.
        own: by label.
        about: what the two are, for the message.
        what: the task, as messages begin.
        others: normalised names that data sets are known to use -> those of the list.

    Raises:
        InputError: they are not the same names.
    """
    if len(names) == len(own) and numbered(own):
        return tuple(names)
    known = dict(zip(keys(names), names, strict=True))
    known |= {other: name for other, name in others.items() if name in names}
    by_label = [known.get(key) for key in keys(own)]
    found = tuple(name for name in by_label if name is not None)
    if len(names) != len(own) or len(set(found)) != len(own):
        raise InputError(
            f"{what}: classnames: {about[0]}: {quoted(names)}; {about[1]}: {quoted(own)}; they are"
            " not the same names: give `classnames` in the order of the labels"
        )
    return found


def spelled(given: Sequence[str], own: Sequence[str], origin: str, what: str) -> None:
    """Check the spec's list, which is ordered by label number, against the data's own names.

    Raises:
        InputError: another number of names, or a name that is another label's in the data.
    """
    if len(given) != len(own):
        raise InputError(
            f"{what}: classnames: {len(given)} in the spec; the data have {len(own)} classes"
            f" ({origin}: {quoted(own)})"
        )
    place = {key: label for label, key in enumerate(keys(own))}
    for label, key in enumerate(keys(given)):
        if place.get(key, label) != label:
            raise InputError(
                f"{what}: classnames: {given[label]!r} is label {label} in the spec and label"
                f" {place[key]} in the data ({origin}); the order of the labels is needed"
            )


def name_classes(
    spec: Sequence[str] | None,
    own: tuple[Sequence[str], str] | None,
    meta: Sequence[str] | None,
    built: tuple[Sequence[str], Mapping[str, str], str] | None,
    what: str,
) -> Naming:
    """The names of a task's classes.

    Args:
        spec: `classnames` of the spec.
        own: the data's own names by label, and where they are.
        meta: `classnames` of meta.json.
        built: the built-in names, other names that data sets use for them, and the task's name.
        what: the task, as messages begin.

    Raises:
        InputError: lists that contradict each other, or none at all.
    """
    if own is None and meta is not None:
        own, meta = (meta, "meta.json"), None
    elif own is not None and meta is not None:
        meta = aligned(meta, own[0], ("in meta.json", f"in the data ({own[1]})"), what, {})
    if spec is not None:
        if own is None:
            return Naming(tuple(spec), "names and their order from the spec")
        spelled(spec, own[0], own[1], what)
        return Naming(tuple(spec), f"names from the spec, order checked by {own[1]}")
    if built is not None:
        names, others, task = built
        if own is None:
            return Naming(
                tuple(names),
                f"names and their order built in for {task!r}; the data name none: labels are taken"
                " to be in that order",
            )
        about = (f"built in for {task!r}", f"in the data ({own[1]})")
        found = aligned(names, own[0], about, what, others)
        return Naming(found, f"names built in for {task!r}, order from {own[1]}")
    if own is None:
        raise InputError(
            f"{what}: classnames: 0 found: neither in meta.json nor in the data; give `classnames`"
        )
    if meta is not None:
        return Naming(tuple(meta), f"names from meta.json, order from {own[1]}")
    return Naming(tuple(own[0]), f"names and their order from {own[1]}")


def check_prompts(names: Sequence[str], what: str) -> None:
    """Raise InputError where two classes have the same prompts.

    Templates say nothing else of a class than its name, and tokenizers of CLIP ignore case and
    repeated blanks.
    """
    seen: dict[str, str] = {}
    for name in names:
        key = " ".join(unicodedata.normalize("NFC", name).lower().split())
        if key in seen:
            raise InputError(
                f"{what}: classnames: {seen[key]!r} and {name!r} make the same prompts; each class"
                " needs its own"
            )
        seen[key] = name
        if not key:
            raise InputError(f"{what}: classnames: {name!r}: a name that is not blank is needed")
