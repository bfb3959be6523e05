"""Error messages for a sweep file: one line for each fault, with what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NoReturn, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from actors.files.documents import dotted as document_dotted
from fusion.errors import InputError, unknown
from fusion.parameters import members
from sweeps.console import redact

LONGEST = 80
"""Characters of a value that a line shows."""


class Fault(InputError):
    """One fault: where in the file, the value, and what is allowed there."""

    def __init__(self, loc: Sequence[str | int], value: Any, allowed: str) -> None:
        super().__init__(f"{dotted(loc)}: {shown(value)}: {allowed}")
        self.loc, self.value, self.allowed = tuple(loc), value, allowed

    def under(self, *prefix: str | int) -> Fault:
        """The same fault with `path` put before its own path."""
        return Fault((*prefix, *self.loc), self.value, self.allowed)


class NotGiven:
    """Placeholder for the value of a field that the file leaves out."""

    def __repr__(self) -> str:
        return "not given"


NOT_GIVEN = NotGiven()


class SpecErrors(InputError):
    """All faults of a sweep file; `lines` has one line for each."""

    def __init__(self, lines: Iterable[str]) -> None:
        super().__init__(*lines)
        self.lines: tuple[str, ...] = self.args


def raise_all(faults: Sequence[Fault]) -> NoReturn:
    """Raise several faults from inside a pydantic validator; pydantic adds the outer path."""
    raise ValidationError.from_exception_data(
        "sweep file",
        [
            InitErrorDetails(
                type=custom_error(fault.allowed),
                loc=fault.loc,
                input=fault.value,
            )
            for fault in faults
        ],
    )


def custom_error(allowed: str) -> PydanticCustomError:
    """The error to raise in a pydantic validator for one fault; pydantic adds path and value."""
    # The text goes in as a value: a template would read braces in it.
    return PydanticCustomError("fault", "{allowed}", {"allowed": allowed})


def spec_errors(error: ValidationError, model: type[BaseModel], file: str) -> SpecErrors:
    """Translate pydantic's errors; field descriptions say what is allowed.

    A list of a wrong length or a union can yield several errors at one place: the first speaks.
    """
    lines: dict[tuple[str | int, ...], str] = {}
    for details in error.errors(include_url=False):
        if details["type"] == "default_factory_not_called":
            continue  # what it depends on is at fault, and has its own line
        fault = translate(details, model)
        lines.setdefault(fault.loc, f"{file}: {fault}")
    return SpecErrors(lines.values())


def translate(details: ErrorDetails, model: type[BaseModel]) -> Fault:
    """Translate one pydantic error into a fault."""
    kind, value = details["type"], details["input"]
    loc = tuple(part for part in details["loc"] if part != "[key]")
    if kind == "fault":
        return Fault(loc, value, details["msg"])
    if details["loc"][-1:] == ("[key]",) or kind == "invalid_key":
        return Fault((*loc[:-1], value), value, f"a name must be a text{quotes(value)}")
    owner, description, annotation = find(model, loc)
    if kind == "extra_forbidden":
        return Fault(loc, value, unknown("field", str(loc[-1]), owner.model_fields))
    if kind == "missing":
        return Fault(loc, NOT_GIVEN, f"{description} needed")
    allowed = f"{description} allowed"
    if kind == "string_type" and not isinstance(value, Mapping | list | None):
        allowed += quotes(value)
    if kind == "literal_error" and isinstance(value, str):
        allowed += nearest(value, annotation)
    return Fault(loc, value, allowed)


def quotes(value: Any) -> str:
    """Hint to quote a text that YAML reads as something else.

    >>> quotes(False)
    "; YAML reads no, off and false as a truth value: put it in quotes, as in 'no'"
    """
    if isinstance(value, bool):
        words = ("yes", "on", "true") if value else ("no", "off", "false")
        said = f"{words[0]}, {words[1]} and {words[2]}"
        return f"; YAML reads {said} as a truth value: put it in quotes, as in {words[0]!r}"
    return "; put it in quotes"


def find(model: type[BaseModel], loc: Sequence[str | int]) -> tuple[type[BaseModel], str, Any]:
    """The model field at a path in the file.

    Returns:
        The innermost model that holds it, what is allowed there, and its type annotation.
    """
    annotation: Any = model
    description = f"a mapping of {', '.join(model.model_fields)}"
    for part in loc:
        if is_model(annotation):
            model = annotation
            field = model.model_fields.get(str(part))
            annotation = field.annotation if field else None
            description = (field and field.description) or ""
        elif issubclass(get_origin(annotation) or object, Mapping):
            annotation = get_args(annotation)[1]
            if is_model(annotation):
                description = f"a mapping of {', '.join(annotation.model_fields)}"
            elif get_origin(annotation) is Annotated:
                annotation, info = get_args(annotation)[:2]
                description = info.description
    return model, description, annotation


def is_model(annotation: Any) -> bool:
    """Whether a type annotation is one of the project's pydantic models."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def nearest(value: str, annotation: Any) -> str:
    """Hint at the closest allowed word; empty if none is close."""
    words = [str(word) for member in members(annotation) for word in get_args(member)]
    words += [str(word) for word in get_args(annotation)]
    near = difflib.get_close_matches(value, words, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def dotted(loc: Sequence[str | int]) -> str:
    """A path as text: `methods.ties.scale`."""
    return document_dotted(loc) or "(whole file)"


def shown(value: Any) -> str:
    """A value on one line, shortened in the middle if long.

    >>> shown({"grid": list(range(100))})
    "{'grid': [0, 1, 2, 3, 4, 5, 6, 7, 8, 9 … 92, 93, 94, 95, 96, 97, 98, 99]}"
    """
    text = redact.text(repr(value))
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half].rstrip(' ,')} … {text[-half + 6 :].lstrip(' ,')}"
