"""Class names of a task, matched to its labels.

Four lists may give the names: the spec's, the data's own (`ClassLabel` features, folders, text
labels), `meta.json` beside the data, and the built-in list for the task's name. The data's own list
or, failing that, `meta.json` fixes the label of each name. A list alone, without names in the data,
is in the order of the label numbers. Two lists that are used together must hold the same names
after normalisation, which ignores case, Unicode form, blanks, `_`, `-`, `/` and SUN397's leading
`/a/`. Names that are the whole numbers 0 to N−1 are the labels themselves, whatever the other list
holds.

Only the spec's list may give a class another name. It is in the order of the label numbers; a name
that the data use for another label is refused.
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
    """A name in normal form: two spellings of one name become equal.

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
    """Whether names are the labels themselves: the whole numbers 0, 1, … in this order."""
    digits = all(name.isascii() and name.isdecimal() for name in names)
    return digits and [int(name) for name in names] == list(range(len(names)))


def quoted(names: Sequence[str]) -> str:
    """Up to five names, quoted for an error message."""
    shown = ", ".join(repr(name[:40]) for name in names[:5])
    return f"{len(names)} ({shown}{', …' if len(names) > 5 else ''})"


def aligned(
    names: Sequence[str],
    own: Sequence[str],
    about: tuple[str, str],
    what: str,
    others: Mapping[str, str],
) -> tuple[str, ...]:
    """Reorder `names` to the order of the data's `own` names, matching them after normalisation.

    Args:
        names: class names from another list.
        own: the data's names, in the order of the labels.
        about: what each of the two lists is, for the error message.
        what: the task's name, which starts the error message.
        others: alternative names (normalised) that data sets are known to use -> name in `names`.

    Raises:
        InputError: the two lists hold different names.
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
    """Check the spec's list, in the order of label numbers, against the data's own names.

    Raises:
        InputError: the lengths differ, or a name belongs to another label in the data.
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
    """The class names of a task, chosen from the four possible lists.

    Args:
        spec: `classnames` of the spec.
        own: the data's own names in the order of the labels, and the file or folder they come from.
        meta: `classnames` of `meta.json`.
        built: the built-in names, alternative names that data sets use, and the task's name.
        what: the task's name, which starts error messages.

    Raises:
        InputError: two lists contradict each other, or there is no list.
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

    A prompt differs between classes only by the class name, and CLIP's tokenizers ignore case and
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
