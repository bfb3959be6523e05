"""How rows of a text task are put into words: a template, its columns, and a target for each class.

Importable without torch, and without the libraries that tokenise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter

from actors.data.class_names import keys, normalised
from fusion.errors import InputError


@dataclass(frozen=True)
class Wording:
    """The words of a text task.

    >>> Wording("Is '{a}' like '{b}'?", ("b", "a"), ("no", "yes")).prompt({"a": "x", "b": "y"})
    "Is 'x' like 'y'?"
    """

    template: str
    """With `{column}` where a row's text goes; `{{` and `}}` are braces."""
    columns: tuple[str, ...]
    """All columns of the template. In this order they are given to a model that reads fields."""
    targets: tuple[str, ...]
    """Class -> the answer (verbaliser)."""

    def prompt(self, row: Mapping[str, str]) -> str:
        """The template with a row's texts; nothing else is changed."""
        return "".join(
            literal + ("" if field is None else row[field])
            for literal, field in pieces(self.template)
        )

    @property
    def values(self) -> tuple[float, ...] | None:
        """Class -> its target as a number; None where a target is no number."""
        try:
            return tuple(float(target) for target in self.targets)
        except ValueError:
            return None


@lru_cache(maxsize=64)
def pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """A template as texts, each with the column that follows it; kept, as rows share templates.

    >>> pieces("Is {a}?")
    (('Is ', 'a'), ('?', None))
    """
    return tuple((literal, field) for literal, field, _, _ in Formatter().parse(template))


def fields_of(template: str, what: str) -> tuple[str, ...]:
    """The columns that a template names, in the order of their first use.

    Raises:
        InputError: no field, an empty one, one with a format, or braces that do not match.
    """
    allowed = "a text with {column} where a column's text goes is needed"
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"{what}: template {template!r}: {error}; {allowed}") from None
    found = [(field, spec, conversion) for _, field, spec, conversion in parts if field is not None]
    if not found:
        raise InputError(f"{what}: template {template!r}: no field; {allowed}")
    for field, spec, conversion in found:
        if not field or spec or conversion:
            end = f"!{conversion}" if conversion else ""
            shown = "{" + field + end + (f":{spec}" if spec else "") + "}"
            raise InputError(f"{what}: template {template!r}: field {shown}; {allowed}")
    return tuple(dict.fromkeys(field for field, _, _ in found))


def check_fields(template: str, columns: Sequence[str], what: str) -> None:
    """Raise InputError where a template has a field that is not among the task's columns."""
    for field in fields_of(template, what):
        if field not in columns:
            raise InputError(
                f"{what}: template {template!r}: field {{{field}}}: no such column among"
                f" {', '.join(columns)}"
            )


def spoken(classname: str) -> str:
    """A class name as an answer: underscores are blanks.

    >>> spoken("card_arrival")
    'card arrival'
    """
    return " ".join(classname.replace("_", " ").split())


def targets_of(
    given: Sequence[str] | Mapping[str, str] | None, classnames: Sequence[str], what: str
) -> tuple[str, ...]:
    """Class -> target.

    Args:
        given: by label; or class name -> target; or None: the class names, as `spoken`.
        classnames: by label.
        what: the task, as messages begin.

    Raises:
        InputError: another number of targets than classes, a name that is no class, targets that
            are blank or equal.
    """
    if given is None:
        found = tuple(spoken(name) for name in classnames)
    elif isinstance(given, Mapping):
        found = by_name(given, classnames, what)
    else:
        found = tuple(given)
    if len(found) != len(classnames):
        raise InputError(
            f"{what}: targets: {len(found)}; one for each of the {len(classnames)} classes needed"
        )
    seen: dict[str, str] = {}
    for target, name in zip(found, classnames, strict=True):
        key = " ".join(target.split())
        if not key:
            raise InputError(f"{what}: targets: {target!r} of class {name!r}: blank; a text needed")
        if key in seen:
            raise InputError(
                f"{what}: targets: {target!r} of the classes {seen[key]!r} and {name!r}; each class"
                " needs its own"
            )
        seen[key] = name
    return found


def by_name(given: Mapping[str, str], classnames: Sequence[str], what: str) -> tuple[str, ...]:
    """Targets in the order of class names; names are compared as `class_names.py` does.

    Raises:
        InputError: a name that is no class, or a class without a target or with two.
    """
    place = dict(zip(keys(classnames), classnames, strict=True))
    found: dict[str, str] = {}
    for name, target in given.items():
        known = name if name in classnames else place.get(normalised(name))
        if known is None:
            raise InputError(
                f"{what}: targets: {name!r}: no such class; there: {', '.join(classnames)}"
            )
        if known in found:
            raise InputError(f"{what}: targets: class {known!r}: named twice; one target needed")
        found[known] = target
    for name in classnames:
        if name not in found:
            raise InputError(f"{what}: targets: none for class {name!r}; each class needs one")
    return tuple(found[name] for name in classnames)
