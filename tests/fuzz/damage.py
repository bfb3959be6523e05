"""Strategies that damage valid bytes and JSON objects, and the law that every reader keeps.

A fuzz test makes one valid file, alters it by a strategy of this module, and hands it to the
reader under `only_input_errors`. A reader either refuses in one line, or returns what an intact
file of that content would have given.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

from fusion.errors import InputError

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**12, 0.5, -0.0, float("inf"), float("nan")]),
    st.text(max_size=8),
    st.sampled_from(
        ["", ".", "..", "../x", "/abs", "a/b", "a\0b", "no", "1e999", "\ud800", "x" * 300]
    ),
    st.lists(st.integers(-3, 3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(-3, 3), max_size=2),
)
"""Values that a field of a file might hold instead of its own."""


@st.composite
def altered(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with bytes flipped, cut, taken out, put in, repeated or zeroed; never unchanged."""
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    end = min(len(data), at + draw(st.integers(1, 16)))
    kind = draw(st.sampled_from(["flip", "cut", "remove", "insert", "repeat", "zero", "append"]))
    if kind == "flip" and data:
        found = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
    elif kind == "cut":
        found = data[:at]
    elif kind == "remove":
        found = data[:at] + data[end:]
    elif kind == "insert":
        found = data[:at] + draw(st.binary(min_size=1, max_size=16)) + data[at:]
    elif kind == "repeat":
        found = data[:end] + data[at:]
    elif kind == "zero":
        found = data[:at] + bytes(end - at) + data[end:]
    else:
        found = data + draw(st.binary(min_size=1, max_size=16))
    return found if found != data else data + b"\0"


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside lists and mappings, outermost first."""
    inner = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in inner:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, content: Any) -> Any:
    """A copy of plain data with one value anywhere replaced, removed, or one key added."""
    found = copy.deepcopy(content)
    *outer, last = draw(st.sampled_from(list(places(content))))
    node = found
    for key in outer:
        node = node[key]
    kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if kind == "remove":
        del node[last]
    elif kind == "add" and isinstance(node, dict):
        node[draw(st.text(max_size=6))] = draw(ODD)
    else:
        node[last] = draw(ODD)
    return found


@contextmanager
def only_input_errors() -> Iterator[None]:
    """The block may raise an `InputError` of one line, and nothing else."""
    said = "refused"
    try:
        yield
    except InputError as error:
        said = str(error)
    assert said.strip(), "an empty message"
    assert "\n" not in said, f"more than one line: {said}"
    assert len(said) < 2000, f"too long: {said[:200]}"
