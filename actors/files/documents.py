"""JSON and YAML that somebody else wrote: bounded in size, depth and digits, one line a fault.

Every JSON or YAML file that the product opens goes through here: configurations of models,
recipes, ledger entries, sweep files. Each file is read whole or refused; nothing is guessed.
What a file holds is checked by `checked`, against the types of a dataclass.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from fusion.errors import InputError, one_line, reading

T = TypeVar("T")

JSON_BYTES = 32 << 20
"""A JSON file larger than this is refused. An index of the largest models on the hub has 10 MB."""

YAML_BYTES = 1 << 20
"""A YAML file larger than this is refused. A sweep file has a few KB."""

YAML_VALUES = 100_000
"""Values of a YAML file, at most; what an alias stands for counts each time."""

DEPTH = 64
"""Lists and mappings inside each other, at most."""

DIGITS = 40
"""Digits of a whole number, at most: 64 bits need 20."""

FLOAT_DIGITS = 400
"""Characters of a number with a dot or an exponent, at most: 1e308 written out has 309."""

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


def decoded(data: bytes, where: str) -> str:
    """The text of a file's bytes: UTF-8, with or without a byte order mark.

    Raises:
        InputError: not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8: a text file needed") from None


# --- JSON ---------------------------------------------------------------------------------------


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


def parse_json(data: bytes | str, where: str, *, finite: bool = True) -> Any:
    """Plain data from JSON text.

    Args:
        data: the text; bytes are UTF-8.
        where: begins the message.
        finite: whether `NaN` and `Infinity`, which Python writes and JSON has not, are refused.

    Raises:
        InputError: not JSON, a key given twice, nested too deeply, a number with too many digits
            or too large, half of a surrogate pair.
    """
    text = decoded(data, where) if isinstance(data, bytes) else data
    try:
        content = json.loads(
            text,
            object_pairs_hook=unique,
            parse_int=whole,
            parse_float=real,
            parse_constant=not_finite if finite else float,
        )
    except RecursionError:
        raise InputError(f"{where}: nested more than {DEPTH} deep") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: not JSON: {one_line(error)[:200]}") from None
    check_depth(content, where)
    if HALVES.search(text):
        check_texts(content, where)
    return content


HALVES = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
"""What a text may hold that cannot be printed or written."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose keys all differ."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:80]!r} given twice")
    return found


def whole(digits: str) -> int:
    """A whole number."""
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits; at most {DIGITS} allowed")
    return int(digits)


def real(digits: str) -> float:
    """A number with a dot or an exponent."""
    if len(digits) > FLOAT_DIGITS:
        raise ValueError(f"a number of {len(digits)} characters; at most {FLOAT_DIGITS} allowed")
    found = float(digits)
    if math.isinf(found):
        raise ValueError(f"{digits[:40]}: too large for a number")
    return found


def not_finite(word: str) -> float:
    """Refuses what is no number."""
    raise ValueError(f"{word}: a finite number needed")


def check_depth(content: Any, where: str) -> None:
    """Raise InputError where lists and mappings lie more than `DEPTH` inside each other."""
    level = [content]
    for _ in range(DEPTH):  # the content itself, then what lies in it
        level = [
            inner
            for each in level
            for inner in within(each)
            if isinstance(inner, dict | list | tuple | set)
        ]
        if not level:
            return
    raise InputError(f"{where}: nested more than {DEPTH} deep")


def within(value: Any) -> Iterable[Any]:
    """What a list or mapping holds; nothing of any other value."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple | set) else ()


def check_texts(content: Any, where: str) -> None:
    """Raise InputError where a text, or a key, holds half of a surrogate pair."""
    for text in texts(content):
        if HALVES.search(text):
            raise InputError(f"{where}: {text[:80]!r}: half of a surrogate pair: no text")


def texts(content: Any) -> Iterator[str]:
    """Every text in plain data, keys among them."""
    rest = [content]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            rest += value.keys()
        rest += within(value)


# --- YAML ---------------------------------------------------------------------------------------


def read_yaml(path: Path, what: str = "") -> Any:
    """A YAML file.

    Raises:
        InputError: as `read_bytes` and `parse_yaml`.
    """
    where = f"{what}: {path}" if what else str(path)
    return parse_yaml(decoded(read_bytes(path, what, limit=YAML_BYTES), where), where)


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML text: one document of texts, numbers, booleans, nulls, lists, mappings.

    Where YAML 1.1 and 1.2 differ: `yes`, `no`, `on`, `off` are booleans; dates, `12:30` and `0o17`
    are texts; `1e-3` is a number; `017` is refused. Keys may be numbers or booleans, which no
    schema of ours takes; lists and mappings may not be keys.

    Raises:
        InputError: not YAML, out of bounds, another tag, a key given twice, an alias that holds
            itself; one line, with the place.
    """
    if len(text) > YAML_BYTES:
        raise InputError(f"{where}: more than {YAML_BYTES:,} characters; at most that many allowed")
    if re.search(r"^%TAG", text, re.MULTILINE):  # libyaml takes minutes for many of them
        raise InputError(f"{where}: not YAML as read here: no %TAG lines allowed")
    builder = Builder()
    try:
        for event in yaml.parse(text, Loader=LOADER):
            builder.take(event)
    except Misplaced as fault:
        raise InputError(f"{where}: {fault}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = f"not YAML: {error.problem or error.context}"
        raise InputError(f"{where}: {place(mark)}{said}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{where}: not YAML: {one_line(error)[:200]}") from None
    check_depth(builder.found, where)
    return builder.found


def dump_yaml(content: Any, **options: Any) -> str:
    """YAML text that `parse_yaml` reads back equal; keys in the order given."""
    return str(yaml.dump(content, Dumper=Dumper, sort_keys=False, **options))


LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where PyYAML has it; only its parser is used."""

REAL = re.compile(
    r"[-+]?(?=[0-9_]*[.eE])(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"
)
"""Numbers here and in YAML 1.2; without a dot, or a sign after the `e`, texts to PyYAML."""


class Dumper(yaml.SafeDumper):
    """PyYAML's, which puts a text like `1e-3` in quotes."""


Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(f"^(?:{REAL.pattern})$"), list("-+.0123456789")
)

CORE = "tag:yaml.org,2002:"
TRUTH = {
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
NULLS = ("", "~", "null", "Null", "NULL")
OCTAL = re.compile(r"[-+]?0[0-7_]+")
WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
BASED = re.compile(r"([-+]?)0([xb])([0-9a-fA-F_]+)")
ENDLESS = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def plain(text: str) -> Any:
    """The value of a scalar without quotes and without a tag.

    Raises:
        ValueError: a number out of bounds, or one that is another in YAML 1.2.
    """
    if text in TRUTH or text in NULLS:
        return TRUTH.get(text)
    if OCTAL.fullmatch(text):
        raise ValueError(
            f"{text[:40]}: octal in YAML 1.1, decimal in YAML 1.2; a number without the leading 0,"
            " or a text in quotes, needed"
        )
    if WHOLE.fullmatch(text):
        return whole(text.replace("_", ""))
    if found := BASED.fullmatch(text):
        return based(text, *found.groups())
    if found := ENDLESS.fullmatch(text):
        return math.nan if found[2] is None else float(f"{found[1]}inf")
    return real(text.replace("_", "")) if REAL.fullmatch(text) else text


def based(text: str, sign: str, base: str, digits: str) -> int | str:
    """A hexadecimal or binary number; the text, where it is none."""
    try:
        found = int(f"{sign}{digits.replace('_', '')}", 16 if base == "x" else 2)
    except ValueError:
        return text
    return whole(str(found)) if len(digits) <= 256 else whole(digits)


class Misplaced(ValueError):
    """A fault of YAML text, with its place."""


def place(mark: Any) -> str:
    """`line 3, column 7: `, as editors count; empty where it is not known."""
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


@dataclass
class Frame:
    """A list or mapping that has begun and not ended."""

    content: list[Any] | dict[Any, Any]
    anchor: str | None
    begun: int
    """Values before it."""
    key: Any = None
    keyed: bool = False
    """Whether `key` waits for its value."""
    merged: list[Mapping[Any, Any]] = field(default_factory=list)
    """Mappings under `<<`, whose keys those of this one outrank."""


MERGE = object()
"""The key `<<`."""


class Builder:
    """Makes plain data of a parser's events, without recursion; no two places share a value."""

    def __init__(self) -> None:
        self.found: Any = None
        self.documents, self.values = 0, 0
        self.stack: list[Frame] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        """Name -> value and how many values it holds, itself counted."""

    def take(self, event: Any) -> None:
        """One event.

        Raises:
            Misplaced: what `parse_yaml` refuses beside faults of syntax.
        """
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise fault(event, "a second document; one allowed")
        elif isinstance(event, yaml.AliasEvent):
            self.alias(event)
        elif isinstance(event, yaml.ScalarEvent):
            self.count(event, 1)
            self.put(event, scalar(event), event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            self.begin(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.end(event)

    def count(self, event: Any, values: int) -> None:
        """Count values, before they are made."""
        self.values += values
        if self.values > YAML_VALUES:
            raise fault(event, f"more than {YAML_VALUES:,} values, aliases written out")

    def alias(self, event: Any) -> None:
        """A copy of what an anchor names."""
        if any(frame.anchor == event.anchor for frame in self.stack):
            raise Misplaced("an alias that holds itself: plain data needed")
        if event.anchor not in self.anchors:
            raise fault(event, f"not YAML: alias {event.anchor[:80]!r} of no anchor")
        value, values = self.anchors[event.anchor]
        self.count(event, values)
        self.put(event, copy.deepcopy(value), None, values)

    def begin(self, event: Any) -> None:
        """A list or mapping begins."""
        kind = "map" if isinstance(event, yaml.MappingStartEvent) else "seq"
        if event.tag not in (None, CORE + kind):
            raise foreign(event)
        if len(self.stack) > DEPTH:
            raise fault(event, f"nested more than {DEPTH} deep")
        if self.stack and isinstance(self.stack[-1].content, dict) and not self.stack[-1].keyed:
            raise fault(event, "a list or mapping as a key; a text needed")
        self.count(event, 1)
        self.stack.append(Frame({} if kind == "map" else [], event.anchor, self.values - 1))

    def end(self, event: Any) -> None:
        """The innermost list or mapping ends."""
        frame = self.stack.pop()
        content = frame.content
        if isinstance(content, dict) and frame.merged:
            content = {k: v for each in reversed(frame.merged) for k, v in each.items()} | content
        self.put(event, content, frame.anchor, self.values - frame.begun)

    def put(self, event: Any, value: Any, anchor: str | None, values: int) -> None:
        """A value that is whole, to where it stands."""
        if anchor is not None:
            self.anchors[anchor] = value, values
        if not self.stack:
            self.found = value
        elif isinstance(self.stack[-1].content, list):
            self.stack[-1].content.append(value)
        elif not self.stack[-1].keyed:
            self.put_key(event, self.stack[-1], value)
        elif self.stack[-1].key is MERGE:
            self.stack[-1].keyed = False
            self.stack[-1].merged += mappings(event, value)
        else:
            self.stack[-1].keyed = False
            self.stack[-1].content[self.stack[-1].key] = value

    def put_key(self, event: Any, frame: Frame, key: Any) -> None:
        """The key of a mapping's next value."""
        assert isinstance(frame.content, dict)
        if isinstance(key, dict | list):  # of an alias
            raise fault(event, "a list or mapping as a key; a text needed")
        if key in frame.content:
            line = event.start_mark.line + 1
            raise Misplaced(f"line {line}: {shown(key)}: given twice; once allowed")
        merging = key == "<<" and isinstance(event, yaml.ScalarEvent) and not event.style
        frame.key, frame.keyed = MERGE if merging else key, True


def mappings(event: Any, value: Any) -> list[Mapping[Any, Any]]:
    """What stands under `<<`: a mapping, or a list of them of which the first outranks."""
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(each, dict) for each in found):
        raise fault(event, "<<: a mapping, or a list of mappings, needed")
    return found


def scalar(event: Any) -> Any:
    """The value of a scalar."""
    if event.tag is None and event.style:
        return event.value
    if event.tag == f"{CORE}str":
        return event.value
    kind = {"null": type(None), "bool": bool, "int": int, "float": float}.get(
        (event.tag or "").removeprefix(CORE)
    )
    if event.tag is not None and kind is None:
        raise foreign(event)
    try:
        value = plain(event.value)
    except ValueError as error:
        raise fault(event, str(error)) from None
    if kind is not None and type(value) is not kind:
        raise fault(event, f"{shown(event.value)}: no {event.tag.removeprefix(CORE)}")
    return value


def fault(event: Any, said: str) -> Misplaced:
    """A fault at an event."""
    return Misplaced(f"{place(event.start_mark)}{said}")


def foreign(event: Any) -> Misplaced:
    """Of a tag that is none of YAML's core."""
    said = f"tag {event.tag[:80]!r}: none allowed but those of plain values (!!str, !!int, …)"
    return fault(event, said)


# --- what a document holds ----------------------------------------------------------------------


@lru_cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """What checks plain data against a type."""
    return TypeAdapter(kind)


def checked(kind: type[T], content: Any, where: str) -> T:
    """Plain data as a dataclass (or another type), its fields' types strictly as annotated.

    Lists become tuples and whole numbers floats where the type says so; nothing else is converted.
    A dataclass says by `__pydantic_config__` what comes of fields that it has not.

    Raises:
        InputError: the first field that does not fit, its value, and what is allowed.
    """
    try:
        asked: Any = kind
        found: T = adapter(asked).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        loc = dotted(details["loc"])
        value = "" if details["type"] == "missing" else f"{shown(details['input'])}: "
        said = one_line(ValueError(details["msg"]))[:200]
        raise InputError(f"{where}: {f'{loc[:120]}: ' if loc else ''}{value}{said}") from None
    except (ValueError, TypeError, RecursionError) as error:  # what JSON cannot hold
        raise InputError(f"{where}: no plain data: {one_line(error)[:200]}") from None
    return found


def dotted(keys: Iterable[str | int]) -> str:
    r"""Where something stands in a document, on one line.

    >>> dotted(["methods", "ties", 0]), dotted(["a\n"])
    ('methods.ties.0', 'a\\n')
    """
    return ".".join(key if key.isprintable() else ascii(key)[1:-1] for key in map(str, keys))


def shown(value: Any) -> str:
    """A value in a message: one line, not long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
