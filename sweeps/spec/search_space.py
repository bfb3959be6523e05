"""Search spaces of a sweep file: grid, choice, uniform, loguniform, or a list."""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sweeps.spec.errors import Fault

Path: TypeAlias = tuple[str | int, ...]
"""Where a value sits inside a parameter: keys of mappings and positions in lists; () is the top."""

DIGITS = 9
"""Sampled numbers keep this many significant digits: `log` and `exp` differ in the last bit between
machines, and a trial's key must not."""


@dataclass(frozen=True)
class Grid:
    """Try every value, combined with every value of the other grids."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        _check_values(self)


@dataclass(frozen=True)
class Choice:
    """Sample one of the values, each with the same probability."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        _check_values(self)

    def sample(self, rng: random.Random) -> Any:
        """Sample a value; takes one number from the generator."""
        return self.values[int(rng.random() * len(self.values))]


@dataclass(frozen=True)
class Uniform:
    """Sample a float between two ends, uniformly."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_ends(self)

    def sample(self, rng: random.Random) -> float:
        """Sample a value; takes one number from the generator."""
        return self.settle(self.low + rng.random() * (self.high - self.low))

    def settle(self, value: float) -> float:
        """Round `value` and keep it between the ends."""
        return _settle(value, self.low, self.high)


@dataclass(frozen=True)
class LogUniform:
    """Sample a float between two ends, uniformly in its logarithm."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_ends(self)
        if self.low <= 0:
            raise Fault((), to_plain(self), "loguniform: both ends above 0")

    def sample(self, rng: random.Random) -> float:
        """Sample a value; takes one number from the generator."""
        low, high = math.log(self.low), math.log(self.high)
        return self.settle(math.exp(low + rng.random() * (high - low)))

    def settle(self, value: float) -> float:
        """Round `value` and keep it between the ends."""
        return _settle(value, self.low, self.high)


Space: TypeAlias = Grid | Choice | Uniform | LogUniform
WORDS: Mapping[str, type[Grid] | type[Choice] | type[Uniform] | type[LogUniform]] = {
    "grid": Grid,
    "choice": Choice,
    "uniform": Uniform,
    "loguniform": LogUniform,
}
"""What makes a mapping in a sweep file a space."""


def parse(value: Any, path: Path = ()) -> Any:
    """Parse a search space if a mapping has one of the four words; else parse the parts of `value`.

    Raises:
        Fault: not a search space, or a value that a sweep file cannot hold; gives the place.

    >>> parse({"uniform": [0, 1]}), parse({"a": {"grid": [1, 2]}}), parse(0.3)
    (Uniform(low=0.0, high=1.0), {'a': Grid(values=(1, 2))}, 0.3)
    """
    if isinstance(value, Space):
        return value
    if isinstance(value, Mapping):
        if word := next((key for key in value if key in WORDS), None):
            return _space(word, value, path)
        _check_word(value, path)
        for key in value:
            if not isinstance(key, str):
                raise Fault((*path, str(key)), key, "a name must be a text; put it in quotes")
        return {key: parse(inner, (*path, key)) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [parse(inner, (*path, at)) for at, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise Fault(path, value, "a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise Fault(path, value, "a number, a text, true, false, null, a list or a mapping")


def _check_word(value: Mapping[Any, Any], path: Path) -> None:
    """Raise Fault if a mapping looks like a space whose word is misspelt."""
    for key, inner in value.items():
        near = difflib.get_close_matches(str(key), WORDS, n=1, cutoff=0.7)
        if near and len(value) == 1 and isinstance(inner, list):
            raise Fault(path, value, f"unknown space {key!r}; did you mean {near[0]!r}?")


def spaces(value: Any, path: Path = ()) -> Iterator[tuple[Path, Space]]:
    """Search spaces inside a parsed value, with their paths; mappings in the order of their names.

    The order is that of names, not of the file, so that two files that say the same draw the same.
    """
    if isinstance(value, Space):
        yield path, value
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield from spaces(value[key], (*path, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from spaces(inner, (*path, at))


def fill(value: Any, chosen: Mapping[Path, Any], path: Path = ()) -> Any:
    """Replace the search spaces at the paths of `chosen` by values; other spaces stay."""
    if isinstance(value, Space):
        return chosen.get(path, value)
    if isinstance(value, Mapping):
        return {key: fill(inner, chosen, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [fill(inner, chosen, (*path, at)) for at, inner in enumerate(value)]
    return value


def to_plain(value: Any) -> Any:
    """The plain data of a sweep file: the inverse of `parse`."""
    if isinstance(value, Grid | Choice):
        return {type(value).__name__.lower(): [to_plain(inner) for inner in value.values]}
    if isinstance(value, Uniform | LogUniform):
        return {type(value).__name__.lower(): [value.low, value.high]}
    if isinstance(value, Mapping):
        return {key: to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [to_plain(inner) for inner in value]
    return value


def _space(word: str, value: Mapping[str, Any], path: Path) -> Space:
    kind, given = WORDS[word], value[word]
    if len(value) != 1:
        raise Fault(path, value, f"a space is a mapping with {word!r} alone")
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise Fault(path, value, f"{word}: a list")
    try:
        if issubclass(kind, Grid | Choice):
            return kind(tuple(parse(inner, (word, at)) for at, inner in enumerate(given)))
        if len(given) != 2 or not all(map(_is_number, given)):
            raise Fault((), value, f"{word}: [low, high], two finite numbers")
        return kind(float(given[0]), float(given[1]))
    except Fault as fault:
        raise fault.under(*path) from None


def _check_values(space: Grid | Choice) -> None:
    word = type(space).__name__.lower()
    if not space.values:
        raise Fault((), to_plain(space), f"{word}: at least one value")
    for at, value in enumerate(space.values):
        if next(spaces(value), None):
            raise Fault((word, at), to_plain(value), f"{word}: values, not spaces inside a space")


def _check_ends(space: Uniform | LogUniform) -> None:
    if not space.low < space.high:
        word = type(space).__name__.lower()
        raise Fault((), to_plain(space), f"{word}: [low, high] with low below high")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _settle(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)
