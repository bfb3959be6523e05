"""The output of `sweeps methods`: a table of all methods, or one method in full.

Reads `methods.json` (see `sweeps.cli.methods_table`) and imports no method, and so no torch.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fusion.errors import InputError, unknown

Data: TypeAlias = dict[str, Any]
"""One method, or one parameter, as `sweeps.cli.methods_table` writes it."""


@cache
def table() -> list[Data]:
    """Every method, in the order of the registry."""
    text = Path(__file__).with_name("methods.json").read_text(encoding="utf-8")
    found: list[Data] = json.loads(text)
    return found


def describe(name: str | None = None) -> RenderableType:
    """All methods as a table, or one of them in full.

    Raises:
        InputError: no method of that name.
    """
    return overview() if name is None else details(find(name))


def as_json(name: str | None = None) -> list[Data] | Data:
    """The same as plain data: a list of methods, or one of them.

    Raises:
        InputError: no method of that name.
    """
    return table() if name is None else find(name)


def find(name: str) -> Data:
    """The method of that name.

    Raises:
        InputError: no method has this name; the message names the most similar one.
    """
    methods = {method["name"]: method for method in table()}
    if name not in methods:
        raise InputError(unknown("method", name, methods))
    return methods[name]


def overview() -> Table:
    """One row a method: name, kind, parameters with defaults, paper."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("method", "kind", "parameters and defaults", "paper"):
        rows.add_column(column, overflow="fold")
    for method in table():
        given = "\n".join(f"{each['name']}: {default(each)}" for each in method["parameters"])
        rows.add_row(
            Text(method["name"], "bold"),
            Text(method["kind"]),
            Text(given or "–"),
            Text(method["paper"]),
        )
    return rows


def details(method: Data) -> Group:
    """One method in full: facts, parameters, docstring."""
    facts = Table.grid(padding=(0, 2))
    for label in ("kind", "paper", "defaults", "scope", "needs"):
        facts.add_row(Text(label, "dim"), Text(method[label]))
    taken = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("parameter", "allowed", "default"):
        taken.add_column(column, overflow="fold")
    for each in method["parameters"]:
        taken.add_row(Text(each["name"]), Text(each["allowed"]), Text(default(each)))
    parameters = taken if method["parameters"] else Text("no parameters")
    name, doc = Text(method["name"], "bold"), Text(method["doc"])
    return Group(name, facts, Text(), parameters, Text(), doc)


def default(parameter: Data) -> str:
    """A default as it is written in a sweep file."""
    if parameter["required"]:
        return "required"
    value = parameter["default"]
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
