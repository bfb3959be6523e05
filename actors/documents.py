"""JSON and YAML that somebody else wrote: bounded in size, depth and digits, one line a fault.

Every JSON or YAML file that the product opens goes through here: configurations of models,
recipes, ledger entries, sweep files. Each file is read whole or refused; nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from fusion.errors import InputError, reading

JSON_BYTES = 32 << 20
"""A JSON file larger than this is refused. An index of the largest models on the hub has 10 MB."""

YAML_BYTES = 1 << 20
"""A YAML file larger than this is refused. A sweep file has a few KB."""

DEPTH = 64
"""Lists and mappings inside each other, at most."""

DIGITS = 40
"""Digits of a whole number, at most: 64 bits need 20."""

LFS = b"version https://git-lfs.github.com/spec/"
"""How a Git LFS pointer begins: a small text file in the place of the real one."""


def read_bytes(path: Path, what: str = "", *, limit: int = JSON_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Args:
        path: the file.
        what: task, expert or field whose file it is; begins the message.
        limit: bytes.

    Raises:
        InputError: no regular file there, not readable, too large, or a Git LFS pointer.
    """
    where = f"{what}: {path}" if what else str(path)
    with reading(where):
        if not path.is_file() and path.exists():
            raise InputError(f"{where}: not a regular file")
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{where}: more than {limit:,} bytes; at most that many allowed")
    check_pointer(data, where)
    return data


def check_pointer(data: bytes, where: str) -> None:
    """Raise InputError where a file's first bytes are those of a Git LFS pointer."""
    if data.startswith(LFS):
        raise InputError(
            f"{where}: a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"
        )


def read_json(path: Path, what: str = "", *, limit: int = JSON_BYTES) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        InputError: as `read_bytes` and `parse_json`; or the file holds no object.
    """
    where = f"{what}: {path}" if what else str(path)
    content = parse_json(read_bytes(path, what, limit=limit), where)
    if not isinstance(content, dict):
        raise InputError(f"{where}: not a JSON object: {type(content).__name__}")
    return content


def parse_json(data: bytes | str, where: str) -> Any:
    """Plain data from JSON text.

    Raises:
        InputError: not JSON, a key given twice, nested too deeply, or a number with too many
            digits.
    """
    try:
        content = json.loads(data, object_pairs_hook=unique, parse_int=whole)
    except RecursionError:
        raise InputError(f"{where}: nested more than {DEPTH} deep") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: not JSON: {' '.join(str(error).split())[:200]}") from None
    check_depth(content, where)
    return content


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML text (YAML's safe subset).

    Raises:
        InputError: not YAML, or out of bounds.
    """
    if len(text) > YAML_BYTES:
        raise InputError(f"{where}: more than {YAML_BYTES:,} characters")
    try:
        content = yaml.safe_load(text)
    except RecursionError:
        raise InputError(f"{where}: nested more than {DEPTH} deep") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{where}: not YAML: {' '.join(str(error).split())[:200]}") from None
    check_depth(content, where)
    return content


def read_yaml(path: Path, what: str = "") -> Any:
    """A YAML file.

    Raises:
        InputError: as `read_bytes` and `parse_yaml`.
    """
    where = f"{what}: {path}" if what else str(path)
    data = read_bytes(path, what, limit=YAML_BYTES)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8") from None
    return parse_yaml(text, where)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose keys all differ."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:80]!r} given twice")
    return found


def whole(digits: str) -> int:
    """A whole number of JSON."""
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits; at most {DIGITS} allowed")
    return int(digits)


def check_depth(content: Any, where: str) -> None:
    """Raise InputError where lists and mappings lie more than `DEPTH` inside each other."""
    level = [content]
    for _ in range(DEPTH + 1):  # the content itself, then what lies in it
        level = [inner for each in level for inner in within(each)]
        if not level:
            return
    raise InputError(f"{where}: nested more than {DEPTH} deep")


def within(value: Any) -> Iterable[Any]:
    """What a list or mapping holds; nothing of any other value."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple | set) else ()
