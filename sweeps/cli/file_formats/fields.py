"""Fields of sweep and training files, read from their schemas: allowed values, default, meaning."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fusion.parameters import Parameter


@dataclass(frozen=True)
class FieldOfFile:
    """One field of a file."""

    name: str
    allowed: str
    default: str
    meaning: str
    example: str


def fields_of(model: type[BaseModel]) -> Iterator[FieldOfFile]:
    """Fields of a part of a file, in the order of its schema."""
    parts = [
        each for each in model.__mro__ if issubclass(each, BaseModel) and each is not BaseModel
    ]
    known = {name: text for part in reversed(parts) for name, text in meanings(part).items()}
    for name, field in model.model_fields.items():
        yield FieldOfFile(
            name, allowed(field), default(field), known.get(name, ""), example(name, field)
        )


def parameters_of(owner: Callable[..., Any], known: dict[str, Parameter]) -> Iterator[FieldOfFile]:
    """Hyper-parameters of a training function or its options, in order; without examples."""
    found = inherited(owner) if inspect.isclass(owner) else arguments(owner)
    for name, each in known.items():
        value = "required" if each.required else written(each.default)
        yield FieldOfFile(name, each.allowed, value, found.get(name, ""), "")


def inherited(owner: type) -> dict[str, str]:
    """`meanings` of a class, those of its bases included."""
    parts = [each for each in reversed(owner.__mro__) if each is not object]
    return {name: text for part in parts for name, text in meanings(part).items()}


def meanings(owner: type) -> dict[str, str]:
    """Docstrings of a class's fields: the text below each, on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in pairwise(tree.body):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def arguments(function: Callable[..., Any]) -> dict[str, str]:
    """The `Args:` of a docstring: name -> text, on one line."""
    _, _, text = inspect.cleandoc(function.__doc__ or "").partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", text, maxsplit=1)[0]
    found = {}
    for part in re.split(r"\n(?=    \w)", f"\n{section}"):
        name, mark, meaning = part.strip().partition(": ")
        if mark:
            text = " ".join(meaning.split())
            found[name] = text[:1].upper() + text[1:]
    return found


def allowed(field: FieldInfo) -> str:
    """Allowed values of a field, as error messages name them."""
    return (field.description or "").rstrip(",")


def default(field: FieldInfo) -> str:
    """Default of a field as it is written in a file; `required`, or empty for one that depends on
    other fields."""
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "{}" if field.default_factory is dict else ""
    return "{}" if isinstance(field.default, BaseModel) else written(field.default)


def example(name: str, field: FieldInfo) -> str:
    """The field with an example value: that of the schema, else the default."""
    if field.examples:
        return f"{name}: {written(field.examples[0])}"
    plain = field.is_required() or field.default_factory or isinstance(field.default, BaseModel)
    if plain or field.default is None:
        options = [str(each) for each in get_args(field.annotation) if isinstance(each, str)]
        return f"{name}: {options[0]}" if options else ""
    return f"{name}: {written(field.default)}"


def written(value: Any) -> str:
    """A value as it is written on one line of a YAML file.

    >>> written({"grid": [1, 2]}), written(None), written("a photo of a {}.")
    ('{grid: [1, 2]}', 'null', '"a photo of a {}."')
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str):
        bare = value.replace("_", "").replace("-", "").replace("/", "").replace(".", "")
        return value if bare.isalnum() and bare[0].isalpha() else json.dumps(value)
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
