"""The table that `sweeps methods` prints, written from `fusion.registry.METHODS` to `methods.json`.

`sweeps methods` reads that file, because importing the methods imports torch, which takes seconds.
`python -m sweeps.cli.methods_table` writes it anew; a test compares it with `METHODS`.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from fusion.outside_methods import ORIGINS
from fusion.parameters import Parameter, type_name
from fusion.registry import METHODS, Method

PATH = Path(__file__).with_name("methods.json")


def table() -> list[dict[str, Any]]:
    """Every method of this package as plain data, in the order of `METHODS`."""
    return [method_data(name, row) for name, row in METHODS.items() if name not in ORIGINS]


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
        "reads": sorted(method.reads),
        "doc": doc,
    }


def parameter_data(parameter: Parameter) -> dict[str, Any]:
    """One parameter as plain data; a required parameter has no key `default`."""
    data = {
        "name": parameter.name,
        "type": "choice" if parameter.choices else type_name(parameter.annotation),
        "allowed": parameter.allowed,
        "required": parameter.required,
    }
    if parameter.choices:
        data["choices"] = list(parameter.choices)
    return data if parameter.required else {**data, "default": parameter.default}


def text() -> str:
    """The content of `methods.json`."""
    return json.dumps(table(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
