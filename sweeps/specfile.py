"""A sweep file as plain data: strict YAML, and `--set key=value` on top."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Sequence
from typing import Any

import yaml

from fusion.errors import InputError
from sweeps.faults import Fault, dotted, shown


class StrictLoader(yaml.SafeLoader):
    """`yaml.safe_load`, with two differences: a key given twice is refused, `1e-3` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping of a node whose keys all differ."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    line = key_node.start_mark.line + 1
                    raise Fault((f"line {line}",), key_node.value, "given twice; once allowed")
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


# PyYAML follows YAML 1.1, where a number with an exponent needs a dot and a sign: 1e-3 is a text.
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Any:
    """The file's data with the overrides applied.

    Raises:
        InputError: no such file, not YAML, a key given twice, an override that does not fit.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}: a readable sweep file needed") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: a text file needed") from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        what = "empty" if data is None else shown(data)
        raise InputError(f"{path}: {what}: a mapping of name, pool, methods, … needed")
    for override in overrides:
        key, equals, value = override.partition("=")
        label = f"--set {override}"
        if not equals or not all(key.split(".")):
            raise InputError(f"{label}: 'key=value' needed, as in methods.ties.trials=4")
        assign(data, key.split("."), parse_yaml(value, label), label)
    return data


def parse_yaml(text: str, label: str) -> Any:
    """Plain data from YAML text.

    Raises:
        InputError: not YAML, or a key given twice; one line, with the place.
    """
    try:
        return yaml.load(text, StrictLoader)
    except Fault as fault:
        raise InputError(f"{label}: {fault}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InputError(f"{label}: {place}not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{label}: not YAML: {' '.join(str(error).split())}") from None


def assign(data: dict[Any, Any], keys: Sequence[str], value: Any, label: str) -> None:
    """Set a nested value, making the mappings on the way that are absent.

    A name that holds dots itself is found when it is in the file already.

    Raises:
        InputError: something on the way is there and is not a mapping.
    """
    node, rest, done = data, list(keys), []
    while True:
        key, rest = split_key(node, rest)
        done.append(key)
        if not rest:
            node[key] = value
            return
        inner = node.get(key)
        if inner is None:
            inner = node[key] = {}
        if not isinstance(inner, dict):
            raise InputError(
                f"{label}: {dotted(done)} is {shown(inner)}: not a mapping; set it whole"
            )
        node = inner


def split_key(node: dict[Any, Any], keys: Sequence[str]) -> tuple[str, list[str]]:
    """The longest run of `keys` that is a key of `node`, and the rest; else the first.

    >>> split_key({"run.1": {}}, ["run", "1", "x"]), split_key({}, ["a", "b"])
    (('run.1', ['x']), ('a', ['b']))
    """
    for count in range(len(keys), 0, -1):
        if (name := ".".join(keys[:count])) in node:
            return name, list(keys[count:])
    return keys[0], list(keys[1:])
