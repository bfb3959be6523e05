"""Read untrusted JSON and YAML within limits of size, depth and digits; one-line errors.

All JSON and YAML files are read here: model configurations, recipes, ledger entries, sweep files.
A file is read completely or refused. `checked` validates the content against a dataclass.
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
"""Most bytes of a JSON file. The index of the largest models on the hub has 10 MB."""

YAML_BYTES = 1 << 20
"""Most bytes of a YAML file. A sweep file has a few kB."""

YAML_VALUES = 100_000
"""Most values of a YAML file; the values of an alias count at each use."""

DEPTH = 64
"""Deepest nesting of lists and mappings."""

DIGITS = 40
"""Most digits of an integer; 64 bits need 20."""

FLOAT_DIGITS = 400
"""Most characters of a float; 1e308 written out has 309."""

LFS = b"version https://git-lfs.github.com/spec/"
"""First bytes of a Git LFS pointer, a small text file in place of the real file."""


def read_bytes(path: Path, what: str = "", *, limit: int = JSON_BYTES) -> bytes:
    """Content of a regular file of at most `limit` bytes.

    Args:
        path: the file.
        what: task, expert or field that named the file; begins the message.
        limit: most bytes.

    Raises:
        InputError: not a regular file, not readable, too large, or a Git LFS pointer.
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
    """Raise InputError if a file's first bytes are those of a Git LFS pointer."""
    if data.startswith(LFS):
        raise InputError(
            f"{where}: a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"
        )


def decoded(data: bytes, where: str) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        InputError: not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8: a text file needed") from None


# --- JSON ---------------------------------------------------------------------------------------


def read_json(path: Path, what: str = "", *, limit: int = JSON_BYTES) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        InputError: as `read_bytes` and `parse_json`, or the file does not hold an object.
    """
    where = f"{what}: {path}" if what else str(path)
    content = parse_json(read_bytes(path, what, limit=limit), where)
    if not isinstance(content, dict):
        raise InputError(f"{where}: not a JSON object: {type(content).__name__}")
    return content


def parse_json(data: bytes | str, where: str, *, finite: bool = True) -> Any:
    """Parse JSON text.

    Args:
        data: the text; bytes are UTF-8.
        where: begins the message.
        finite: whether to refuse `NaN` and `Infinity`, which Python writes but JSON does not have.

    Raises:
        InputError: not JSON, a duplicate key, nested too deeply, a number with too many digits or
            too large, half of a surrogate pair.
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
"""Surrogates, escaped or not: half of a pair can be neither printed nor encoded."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; raise ValueError for a duplicate key."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:80]!r} given twice")
    return found


def whole(written: str) -> int:
    """Parse an integer, with or without a sign; raise ValueError if it has too many digits."""
    count = len(written.lstrip("+-"))
    if count > DIGITS:
        raise ValueError(f"a number of {count} digits; at most {DIGITS} allowed")
    return int(written)


def real(digits: str) -> float:
    """Parse a float; raise ValueError if it is too long or infinite."""
    if len(digits) > FLOAT_DIGITS:
        raise ValueError(f"a number of {len(digits)} characters; at most {FLOAT_DIGITS} allowed")
    found = float(digits)
    if math.isinf(found):
        raise ValueError(f"{digits[:40]}: too large for a number")
    return found


def not_finite(word: str) -> float:
    """Refuse `NaN` and `Infinity`."""
    raise ValueError(f"{word}: a finite number needed")


def check_depth(content: Any, where: str) -> None:
    """Raise InputError if lists and mappings are nested deeper than `DEPTH`."""
    level = [content]
    for _ in range(DEPTH):  # first the content itself, then one level deeper each time
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
    """Values of a list or mapping; empty for other values."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple | set) else ()


def check_texts(content: Any, where: str) -> None:
    """Raise InputError if a text or key contains half of a surrogate pair."""
    for text in texts(content):
        if HALVES.search(text):
            raise InputError(f"{where}: {text[:80]!r}: half of a surrogate pair: no text")


def texts(content: Any) -> Iterator[str]:
    """All texts in plain data, keys included."""
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
    """Read a YAML file.

    Raises:
        InputError: as `read_bytes` and `parse_yaml`.
    """
    where = f"{what}: {path}" if what else str(path)
    return parse_yaml(decoded(read_bytes(path, what, limit=YAML_BYTES), where), where)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text: one document of texts, numbers, booleans, nulls, lists and mappings.

    Where YAML 1.1 and 1.2 differ: `yes`, `no`, `on`, `off` are booleans; dates, `12:30` and `0o17`
    are texts; `1e-3` is a number; `017` is refused. Lists and mappings cannot be keys.

    Raises:
        InputError: not YAML, beyond a limit, an unknown tag, a duplicate key, an alias that
            contains itself; one line with the position.
    """
    if len(text) > YAML_BYTES:
        raise InputError(f"{where}: more than {YAML_BYTES:,} characters; at most that many allowed")
    if re.search(r"^%TAG", text, re.MULTILINE):  # libyaml takes minutes for many %TAG lines
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
    """Write YAML that `parse_yaml` reads back unchanged; keys keep their order."""
    return str(yaml.dump(content, Dumper=Dumper, sort_keys=False, **options))


LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Loader of libyaml if PyYAML has it; only its parser is used."""

REAL = re.compile(
    r"[-+]?(?=[0-9_]*[.eE])(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"
)
"""Floats of YAML 1.2. PyYAML reads some as texts: no dot, or no sign after the `e`."""


class Dumper(yaml.SafeDumper):
    """PyYAML's dumper, changed to quote texts such as `1e-3`."""


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
    """Value of a scalar without quotes and tag.

    Raises:
        ValueError: a number beyond a limit, or one with another value in YAML 1.2.
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
    """Parse a hexadecimal or binary number; other text is returned unchanged."""
    try:
        found = int(f"{sign}{digits.replace('_', '')}", 16 if base == "x" else 2)
    except ValueError:
        return text
    return whole(str(found)) if len(digits) <= 256 else whole(digits)


class Misplaced(ValueError):
    """An error in YAML text, with its position."""


def place(mark: Any) -> str:
    """`line 3, column 7: `, counted from 1; empty if the position is unknown."""
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


@dataclass
class Frame:
    """A list or mapping that is not complete yet."""

    content: list[Any] | dict[Any, Any]
    anchor: str | None
    begun: int
    """Number of values before it."""
    key: Any = None
    keyed: bool = False
    """Whether `key` is set and its value is next."""
    merged: list[Mapping[Any, Any]] = field(default_factory=list)
    """Mappings given under `<<`; keys of this mapping take precedence."""


MERGE = object()
"""Placeholder for the merge key `<<`."""


class Builder:
    """Builds plain data from parser events, without recursion; aliases are copied."""

    def __init__(self) -> None:
        self.found: Any = None
        self.documents, self.values = 0, 0
        self.stack: list[Frame] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        """Anchor -> value, and the number of values in it, itself included."""

    def take(self, event: Any) -> None:
        """Process one event.

        Raises:
            Misplaced: any error that `parse_yaml` reports, except syntax errors.
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
        """Count values before they are built, against the limit."""
        self.values += values
        if self.values > YAML_VALUES:
            raise fault(event, f"more than {YAML_VALUES:,} values, aliases written out")

    def alias(self, event: Any) -> None:
        """Add a copy of an anchored value."""
        if any(frame.anchor == event.anchor for frame in self.stack):
            raise Misplaced("an alias that holds itself: plain data needed")
        if event.anchor not in self.anchors:
            raise fault(event, f"not YAML: alias {event.anchor[:80]!r} of no anchor")
        value, values = self.anchors[event.anchor]
        self.count(event, values)
        self.put(event, copy.deepcopy(value), None, values)

    def begin(self, event: Any) -> None:
        """Start a list or mapping."""
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
        """End the innermost list or mapping."""
        frame = self.stack.pop()
        content = frame.content
        if isinstance(content, dict) and frame.merged:
            content = {k: v for each in reversed(frame.merged) for k, v in each.items()} | content
        self.put(event, content, frame.anchor, self.values - frame.begun)

    def put(self, event: Any, value: Any, anchor: str | None, values: int) -> None:
        """Add a complete value to its list or mapping."""
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
        """Set the key of a mapping's next value."""
        assert isinstance(frame.content, dict)
        if isinstance(key, dict | list):  # from an alias
            raise fault(event, "a list or mapping as a key; a text needed")
        if key in frame.content:
            line = event.start_mark.line + 1
            raise Misplaced(f"line {line}: {shown(key)}: given twice; once allowed")
        merging = key == "<<" and isinstance(event, yaml.ScalarEvent) and not event.style
        frame.key, frame.keyed = MERGE if merging else key, True


def mappings(event: Any, value: Any) -> list[Mapping[Any, Any]]:
    """The mappings given under `<<`: one, or a list in which the first takes precedence."""
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(each, dict) for each in found):
        raise fault(event, "<<: a mapping, or a list of mappings, needed")
    return found


def scalar(event: Any) -> Any:
    """Value of a scalar, quoted, tagged or plain."""
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
    """An error at the position of an event."""
    return Misplaced(f"{place(event.start_mark)}{said}")


def foreign(event: Any) -> Misplaced:
    """The error for a tag that is not in YAML's core schema."""
    said = f"tag {event.tag[:80]!r}: none allowed but those of plain values (!!str, !!int, …)"
    return fault(event, said)


# --- validation ---------------------------------------------------------------------------------


@lru_cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Cached pydantic adapter of a type."""
    return TypeAdapter(kind)


def checked(kind: type[T], content: Any, where: str) -> T:
    """Validate plain data against a dataclass or another type, strictly.

    Lists become tuples and integers floats where the type asks for them; nothing else is converted.
    `__pydantic_config__` of a dataclass decides what happens to unknown fields.

    Raises:
        InputError: the first invalid field with its value and what is allowed.
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
    except (ValueError, TypeError, RecursionError) as error:  # values that JSON cannot represent
        raise InputError(f"{where}: no plain data: {one_line(error)[:200]}") from None
    return found


def dotted(keys: Iterable[str | int]) -> str:
    r"""Path of a field in a document, on one line.

    >>> dotted(["methods", "ties", 0]), dotted(["a\n"])
    ('methods.ties.0', 'a\\n')
    """
    return ".".join(key if key.isprintable() else ascii(key)[1:-1] for key in map(str, keys))


def shown(value: Any) -> str:
    """A value for a message: one line of at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
