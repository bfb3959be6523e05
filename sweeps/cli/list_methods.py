"""What `sweeps methods` prints: the table of methods, or all there is to say of one."""

from __future__ import annotations

import inspect
import json
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fusion.errors import InputError, unknown
from fusion.parameters import Parameter, type_name
from fusion.registry import METHODS, Method


def describe(name: str | None = None) -> RenderableType:
    """All methods as a table, or one of them in full.

    Raises:
        InputError: no method of that name.
    """
    return overview() if name is None else details(name, find(name))


def as_json(name: str | None = None) -> list[dict[str, Any]] | dict[str, Any]:
    """The same as plain data: a list of methods, or one of them.

    Raises:
        InputError: no method of that name.
    """
    if name is None:
        return [method_data(each, method) for each, method in METHODS.items()]
    return method_data(name, find(name))


def find(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: there is none; names the nearest.
    """
    if name not in METHODS:
        raise InputError(unknown("method", name, METHODS))
    return METHODS[name]


def overview() -> Table:
    """One row a method: what it is, what it takes, where it is from."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("method", "kind", "parameters and defaults", "paper"):
        table.add_column(column, overflow="fold")
    for name, method in METHODS.items():
        given = "\n".join(f"{p.name}: {default(p)}" for p in method.parameters.values())
        table.add_row(Text(name, "bold"), Text(method.kind), Text(given or "–"), Text(method.paper))
    return table


def details(name: str, method: Method) -> Group:
    """Everything of one method: facts, parameters, and its docstring."""
    facts = Table.grid(padding=(0, 2))
    for label, fact in (
        ("kind", method.kind),
        ("paper", method.paper),
        ("defaults", method.defaults),
        ("scope", method.scope),
        ("needs", method.needs),
    ):
        facts.add_row(Text(label, "dim"), Text(fact))
    taken = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("parameter", "allowed", "default"):
        taken.add_column(column, overflow="fold")
    for parameter in method.parameters.values():
        taken.add_row(Text(parameter.name), Text(parameter.allowed), Text(default(parameter)))
    parameters = taken if method.parameters else Text("no parameters")
    doc = Text(inspect.cleandoc(method.doc))
    return Group(Text(name, "bold"), facts, Text(), parameters, Text(), doc)


def default(parameter: Parameter) -> str:
    """A default as a sweep file would say it."""
    if parameter.required:
        return "required"
    plain = parameter.default is None or isinstance(parameter.default, bool)
    return json.dumps(parameter.default) if plain else str(parameter.default)


def method_data(name: str, method: Method) -> dict[str, Any]:
    """One method as plain data."""
    doc = inspect.cleandoc(method.doc)
    return {
        "name": name,
        "kind": method.kind,
        "summary": doc.partition("\n")[0],
        "parameters": [parameter_data(each) for each in method.parameters.values()],
        "paper": method.paper,
        "defaults": method.defaults,
        "scope": method.scope,
        "needs": method.needs,
        "doc": doc,
    }


def parameter_data(parameter: Parameter) -> dict[str, Any]:
    """One parameter as plain data; without a default, it has no key `default`."""
    data = {
        "name": parameter.name,
        "type": "choice" if parameter.choices else type_name(parameter.annotation),
        "allowed": parameter.allowed,
        "required": parameter.required,
    }
    if parameter.choices:
        data["choices"] = list(parameter.choices)
    return data if parameter.required else {**data, "default": parameter.default}
