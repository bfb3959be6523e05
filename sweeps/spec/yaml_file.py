"""Read a sweep file as plain data: strict YAML, then `--set key=value`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.files.documents import DEPTH, check_depth, parse_yaml, read_yaml
from fusion.errors import InputError
from sweeps.console import redact
from sweeps.spec.errors import dotted, shown


def read(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Any:
    """Read the file as plain data and apply the overrides.

    Raises:
        InputError: no such file, not YAML, a key given twice, an override that does not fit.
    """
    data = read_yaml(Path(path))
    if not isinstance(data, dict):
        what = "empty" if data is None else shown(data)
        raise InputError(f"{path}: {what}: a mapping of name, pool, methods, … needed")
    return overridden(data, overrides, str(path))


def overridden(data: dict[Any, Any], overrides: Sequence[str], where: str) -> dict[Any, Any]:
    """Plain data with `key=value` overrides, which are set in it.

    Raises:
        InputError: an override that does not fit, a password or token; names `where`.
    """
    for override in overrides:
        key, equals, value = override.partition("=")
        label = f"--set {shown(override)[1:-1]}"
        if not equals or not all(key.split(".")):
            raise InputError(f"{label}: 'key=value' needed, as in methods.ties.trials=4")
        if key.count(".") >= DEPTH:
            raise InputError(f"{label}: nested more than {DEPTH} deep")
        assign(data, key.split("."), parse_yaml(value, label), label)
    check_depth(data, "--set")
    check_secrets(data, where)
    return data


def check_secrets(data: Any, where: str, keys: tuple[str | int, ...] = ()) -> None:
    """Refuse secrets: the file is copied to the results, to MLflow and to the storage.

    Raises:
        InputError: the field of the first, without it, and where it belongs.
    """
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            check_secrets(value, where, (*keys, key))
    elif isinstance(data, str) and redact.has_secret(data):
        raise InputError(
            f"{where}: {dotted(keys)}: {redact.text(redact.word(data))[:200]!r}: has a user, a"
            " password or a token in it, which would be kept with the results;"
            f" {PLACES.get(keys[-1], ELSEWHERE)} allowed (environment)"
        )


PLACES: Mapping[str | int, str] = {
    "tracking_uri": "MLFLOW_TRACKING_URI, or of a server MLFLOW_TRACKING_USERNAME and"
    " MLFLOW_TRACKING_PASSWORD,"
}
ELSEWHERE = "the variables that its service reads"
"""Where secrets belong, by the field that had one."""


def assign(data: dict[Any, Any], keys: Sequence[str], value: Any, label: str) -> None:
    """Set a nested value; missing mappings are created.

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
    """Split dotted keys at the longest run that is a key of `node`; else after the first.

    >>> split_key({"run.1": {}}, ["run", "1", "x"]), split_key({}, ["a", "b"])
    (('run.1', ['x']), ('a', ['b']))
    """
    for count in range(len(keys), 0, -1):
        if (name := ".".join(keys[:count])) in node:
            return name, list(keys[count:])
    return keys[0], list(keys[1:])
