"""Hyper-parameters of a method: names, types, ranges and defaults, read from its signature."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Interval

from fusion.errors import InputError, unknown

UNSET = inspect.Parameter.empty


@dataclass(frozen=True)
class Parameter:
    """One hyper-parameter: a keyword-only argument of a method."""

    name: str
    annotation: Any
    default: Any
    interval: Interval | None
    choices: tuple[Any, ...] = ()

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is UNSET

    @property
    def allowed(self) -> str:
        """The allowed values as text, for messages."""
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        kind = type_name(self.annotation)
        return f"{kind} {interval_name(self.interval)}" if self.interval else kind

    def complaint(self, value: Any) -> str:
        """What is allowed in place of a value that `check` refuses, for messages."""
        return f"{self.allowed} allowed"

    def check(self, value: Any, owner: str) -> Any:
        """Check a value; integers become floats if the annotation is a float.

        Raises:
            InputError: another type, or a value outside the interval or the choices.
        """
        if self.choices:
            fits = any(value == choice and type(value) is type(choice) for choice in self.choices)
        else:
            fits = fits_type(value, self.annotation) and within(value, self.interval)
        if not fits:
            raise InputError(f"{owner}: {self.name}: {value!r}; {self.complaint(value)}")
        is_int = isinstance(value, int) and not isinstance(value, bool)
        return float(value) if is_int and float in members(self.annotation) else value


def parameters(function: Callable[..., Any], hidden: Iterable[str] = ()) -> dict[str, Parameter]:
    """Hyper-parameters of `function`: its keyword-only arguments in order, without `hidden` ones.

    Ranges are `annotated_types.Interval` in the annotation; choices are `Literal`.

    >>> def f(x, *, scale: Annotated[float, Interval(ge=0)] = 0.3): ...
    >>> parameters(f)["scale"].allowed
    'float >= 0'
    """
    hints = get_type_hints(function, include_extras=True)
    found = {}
    for name, argument in inspect.signature(function).parameters.items():
        if argument.kind is not inspect.Parameter.KEYWORD_ONLY or name in hidden:
            continue
        annotation, interval = hints[name], None
        if get_origin(annotation) is Annotated:
            annotation, *extras = get_args(annotation)
            interval = next((extra for extra in extras if isinstance(extra, Interval)), None)
        choices = get_args(annotation) if get_origin(annotation) is Literal else ()
        found[name] = Parameter(name, annotation, argument.default, interval, choices)
    return found


def bind(owner: str, schema: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Complete and check the hyper-parameters of a call: `given` values over the defaults.

    Args:
        owner: name of the method, for messages.
        schema: name -> parameter.
        given: name -> value.

    Raises:
        InputError: an unknown name (with the nearest valid one), a missing or a wrong value.
    """
    for name in given:
        if name not in schema:
            raise InputError(f"{owner}: {unknown('parameter', name, schema)}")
    bound = {}
    for name, parameter in schema.items():
        if name in given:
            bound[name] = parameter.check(given[name], owner)
        elif parameter.required:
            raise InputError(f"{owner}: {name}: not given; {parameter.allowed} needed")
        else:
            bound[name] = parameter.default
    return bound


def members(annotation: Any) -> tuple[Any, ...]:
    """Alternatives of a union type; any other annotation alone."""
    is_union = get_origin(annotation) is Union or type(annotation).__name__ == "UnionType"
    return get_args(annotation) if is_union else (annotation,)


def fits_type(value: Any, annotation: Any) -> bool:
    """Whether `value` has the annotation's outer type; methods check elements themselves."""
    for member in members(annotation):
        outer = get_origin(member) or member
        if outer is Any or (value is None and member is type(None)):
            return True
        if isinstance(value, bool):
            if outer is bool:
                return True
        elif outer is float:
            if isinstance(value, (int, float)) and math.isfinite(value):
                return True
        elif isinstance(value, str):
            if outer is str:
                return True
        elif isinstance(outer, type) and isinstance(value, outer):
            return True
    return False


def within(value: Any, interval: Interval | None) -> bool:
    """Whether a number lies in the interval; True for values that are no numbers."""
    if interval is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return all(
        (
            interval.ge is None or bool(value >= interval.ge),  # type: ignore[operator]
            interval.gt is None or bool(value > interval.gt),  # type: ignore[operator]
            interval.le is None or bool(value <= interval.le),  # type: ignore[operator]
            interval.lt is None or bool(value < interval.lt),  # type: ignore[operator]
        )
    )


def type_name(annotation: Any) -> str:
    """Type as text for messages and listings: `float`, `str or none`, …"""
    names = []
    for member in members(annotation):
        outer = get_origin(member) or member
        names.append(
            "none" if member is type(None) else getattr(outer, "__name__", str(outer)).lower()
        )
    return " or ".join(names)


def interval_name(interval: Interval) -> str:
    """Interval as text: `in [0, 1]`, `> 0`, … It must have a limit.

    >>> interval_name(Interval(gt=0, le=1)), interval_name(Interval(ge=0))
    ('in (0, 1]', '>= 0')
    """
    low = ("[", interval.ge) if interval.ge is not None else ("(", interval.gt)
    high = ("]", interval.le) if interval.le is not None else (")", interval.lt)
    if low[1] is not None and high[1] is not None:
        return f"in {low[0]}{low[1]}, {high[1]}{high[0]}"
    if low[1] is not None:
        return f"{'>=' if low[0] == '[' else '>'} {low[1]}"
    return f"{'<=' if high[0] == ']' else '<'} {high[1]}"
