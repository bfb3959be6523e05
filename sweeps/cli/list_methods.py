"""The output of `sweeps methods`: a table of all methods, or one method in full.

Reads `methods.json` (see `sweeps.cli.methods_table`) and imports no method, and so no torch.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fusion import outside_methods
from fusion.errors import InputError, unknown

Data: TypeAlias = dict[str, Any]
"""One method, or one parameter, as `sweeps.cli.methods_table` writes it."""


GROUPS = (
    ("weights", "weights alone"),
    ("statistics", "statistics of unlabelled data"),
    ("inputs", "unlabelled data, which they learn from"),
    ("expert_logits", "the experts' outputs"),
    ("labels", "labelled data"),
)
"""What a method reads -> the heading of its group; a method is in the last that it reads."""


@cache
def table() -> list[Data]:
    """Every method, in the order of the registry; those of other packages last."""
    text = Path(__file__).with_name("methods.json").read_text(encoding="utf-8")
    found: list[Data] = json.loads(text)
    return found + outside()


def outside() -> list[Data]:
    """Methods of other packages; without any, no method is imported."""
    if not outside_methods.points() and not os.environ.get(outside_methods.MODULES):
        return []
    from fusion.registry import METHODS
    from sweeps.cli.methods_table import method_data

    return [method_data(name, METHODS[name]) for name in outside_methods.ORIGINS]


def group_of(method: Data) -> str:
    """The heading of a method's group: what it needs."""
    return [heading for read, heading in GROUPS if read in ("weights", *method["reads"])][-1]


def describe(name: str | None = None) -> RenderableType:
    """All methods as tables by what they need, or one of them in full.

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


def names(beginning: str, of_weights: bool = False) -> list[str]:
    """Names that begin so; `of_weights`: of methods that give one model from weights alone.

    >>> names("dare"), names("adam"), names("adam", of_weights=True)
    (['dare'], ['adamerging'], [])
    """
    return [
        method["name"]
        for method in table()
        if method["name"].startswith(beginning)
        and (not of_weights or (method["kind"] == "static" and group_of(method) == GROUPS[0][1]))
    ]


def overview() -> Group:
    """A table for each group of methods."""
    parts: list[RenderableType] = []
    for _, heading in GROUPS:
        found = [method for method in table() if group_of(method) == heading]
        if found:
            parts += [Text(f"needs {heading}", "bold underline"), rows_of(found), Text()]
    return Group(*parts[:-1])


def rows_of(methods: list[Data]) -> Table:
    """One row a method: name, kind, parameters with defaults, paper."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for column, width in (
        ("method", 24),
        ("kind", 8),
        ("parameters and defaults", 0),
        ("paper", 0),
    ):
        rows.add_column(column, overflow="fold", min_width=width or None)
    for method in methods:
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
