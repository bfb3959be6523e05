"""One method's entry in a sweep file, checked against the method's signature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, model_serializer

from fusion.errors import InputError, unknown
from fusion.kinds import Row
from fusion.parameters import Parameter, members
from fusion.registry import METHODS
from sweeps.spec.errors import NOT_GIVEN, Fault, raise_all
from sweeps.spec.search_space import (
    Choice,
    Grid,
    LogUniform,
    Path,
    Space,
    Uniform,
    fill,
    parse,
    spaces,
    to_plain,
)

Searcher = Literal["random", "tpe", "cmaes"]
RESERVED = ("trials", "searcher", "scheduler")
"""Keys of an entry that are not parameters of the method; no method may have one of these."""


Handler = TypeVar("Handler")


def for_kind(table: Mapping[type[Row], Handler], row: Row) -> Handler:
    """The entry of a table by kind of method: that of the row's class, else of its nearest base.

    Raises:
        KeyError: a kind that the table lacks.
    """
    found = [kind for kind in type(row).__mro__ if kind in table]
    return table[found[0] if found else type(row)]


class MethodSpec(BaseModel):
    """Candidates of one method; in the file, parameters and reserved keys are in one mapping."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    params: Mapping[str, Any] = {}
    """Parameter -> fixed value, space, or a list or mapping with spaces inside."""
    trials: int | None = None
    """Samples for each combination of the grids; None: nothing is sampled."""
    searcher: Searcher = "random"
    scheduler: Literal["asha", "pbt"] | None = None

    @property
    def spaces(self) -> dict[Path, Space]:
        """All search spaces by path; a path starts with the parameter's name."""
        return dict(spaces(self.params))

    @property
    def grids(self) -> dict[Path, Grid]:
        """Search spaces of which every value is tried."""
        return {path: space for path, space in self.spaces.items() if isinstance(space, Grid)}

    @property
    def sampled(self) -> dict[Path, Choice | Uniform | LogUniform]:
        """Search spaces that are sampled `trials` times."""
        return {path: space for path, space in self.spaces.items() if not isinstance(space, Grid)}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        flat: dict[str, Any] = to_plain(self.params)
        for key in RESERVED:
            if getattr(self, key) != type(self).model_fields[key].default:
                flat[key] = getattr(self, key)
        return flat


def read_methods(raw: Any) -> dict[str, MethodSpec]:
    """Read the `methods` of a sweep file.

    Raises:
        ValidationError: every fault of every entry, for pydantic to add to the others.
    """
    if not isinstance(raw, Mapping) or not raw:
        raise_all([Fault((), raw, "a mapping of at least one method to its parameters needed")])
    entries, faults = {}, []
    for name, entry in raw.items():
        if not isinstance(name, str) or name not in METHODS:
            faults.append(Fault((str(name),), name, unknown("method", str(name), METHODS)))
        elif isinstance(entry, MethodSpec):
            entries[name] = read_entry(name, entry.model_dump(), faults)
        elif entry is None or isinstance(entry, Mapping):
            entries[name] = read_entry(name, entry or {}, faults)
        else:
            faults.append(Fault((name,), entry, "a mapping of parameters, or {}, allowed"))
    if faults:
        raise_all(faults)
    return entries


def read_entry(name: str, raw: Mapping[str, Any], faults: list[Fault]) -> MethodSpec:
    """Read one entry; its faults are appended, and it is valid only if there are none."""
    schema = METHODS[name].parameters
    params, wrong = {}, []
    for key, value in raw.items():
        if key in RESERVED:
            continue
        if key not in schema:
            hint = unknown("parameter", str(key), (*schema, *RESERVED))
            wrong.append(Fault((str(key),), value, hint))
            continue
        try:
            params[key] = read_parameter(schema[key], value)
        except Fault as fault:
            wrong.append(fault.under(key))
    wrong += [
        Fault((key,), NOT_GIVEN, f"{parameter.allowed} needed")
        for key, parameter in schema.items()
        if parameter.required and key not in raw
    ]
    # Whether anything is sampled is only known when all parameters are.
    sampled = None if wrong else list(MethodSpec(params=params).sampled.values())
    wrong += trials_faults(raw.get("trials"), None if sampled is None else bool(sampled))
    wrong += searcher_faults(raw.get("searcher", "random"), sampled)
    wrong += scheduler_faults(raw.get("scheduler"), name)
    faults += [fault.under(name) for fault in wrong]
    return MethodSpec(params=params, **({} if wrong else {k: raw[k] for k in RESERVED if k in raw}))


def read_parameter(parameter: Parameter, raw: Any) -> Any:
    """Read a fixed value or one with search spaces; every value it can take is checked.

    Raises:
        Fault: with the path inside the parameter.
    """
    value = parse(raw)
    found = dict(spaces(value))
    if not found:
        return checked(parameter, value)
    first = {path: probes(space)[0][1] for path, space in found.items()}
    replaced: dict[Path, Any] = {}
    for path, space in found.items():
        if not path and isinstance(space, Uniform | LogUniform) and not takes_floats(parameter):
            raise Fault(path, to_plain(space), f"{parameter.allowed} needed: use grid or choice")
        values = []
        for inside, probe in probes(space):
            result = checked(
                parameter, fill(value, {**first, path: probe}), (*path, *inside), probe
            )
            values.append(result if not path else probe)
        if isinstance(space, Grid | Choice):
            replaced[path] = type(space)(tuple(values))
    return fill(value, replaced)


def checked(parameter: Parameter, value: Any, path: Path = (), culprit: Any = None) -> Any:
    """Check `value` against the parameter's type; an error names `culprit`, the part of it at
    `path`."""
    try:
        return parameter.check(value, "")
    except InputError:
        blamed = value if culprit is None else culprit
        allowed = parameter.complaint(value)
        raise Fault(path, blamed, f"{allowed}{grid(parameter, blamed)}") from None


def grid(parameter: Parameter, value: Any) -> str:
    """Hint for a list where one value is needed and the list's values are allowed: a grid is meant.

    >>> scale = Parameter("scale", float, 0.3, None)
    >>> grid(scale, [0.1, 0.3])
    '; to try each: {grid: [0.1, 0.3]}'
    >>> grid(scale, ["a"])
    ''
    """
    if not isinstance(value, list) or not value:
        return ""
    try:
        for each in value:
            parameter.check(each, "")
    except InputError:
        return ""
    return f"; to try each: {{grid: {value}}}"


def probes(space: Space) -> list[tuple[Path, Any]]:
    """Values of a search space that decide whether all its values are allowed, with their paths."""
    word = type(space).__name__.lower()
    values = (space.low, space.high) if isinstance(space, Uniform | LogUniform) else space.values
    return [((word, at), value) for at, value in enumerate(values)]


def takes_floats(parameter: Parameter) -> bool:
    """Whether a parameter may allow every float between two allowed ones."""
    return not parameter.choices and float in members(parameter.annotation)


def trials_faults(trials: Any, is_sampled: bool | None) -> Iterator[Fault]:
    """Faults of `trials`: it is needed for sampled spaces, and only for them (None: not known)."""
    if trials is None:
        if is_sampled:
            needed = "an integer of at least 1 needed, since a choice or uniform space is sampled"
            yield Fault(("trials",), NOT_GIVEN, needed)
    elif isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        yield Fault(("trials",), trials, "an integer of at least 1 allowed")
    elif is_sampled is False:
        yield Fault(("trials",), trials, "nothing is sampled, grids are tried whole; leave it out")


def searcher_faults(searcher: Any, sampled: Sequence[Space] | None) -> Iterator[Fault]:
    """Faults of the searcher: it must be known, and suit the search spaces (None: not known)."""
    if searcher not in get_args(Searcher):
        hint = unknown("searcher", str(searcher), get_args(Searcher))
        yield Fault(("searcher",), searcher, hint)
    elif searcher != "random" and sampled == []:
        yield Fault(("searcher",), searcher, "nothing is sampled; leave it out")
    elif searcher == "cmaes" and sampled and not suits_cmaes(sampled):
        needed = "at least two uniform or loguniform spaces and no choice needed, or tpe"
        yield Fault(("searcher",), searcher, needed)


def scheduler_faults(scheduler: Any, method: str) -> Iterator[Fault]:
    """Faults of a scheduler: the method must report results while it learns."""
    if scheduler not in (None, "asha"):
        yield Fault(("scheduler",), scheduler, "null or 'asha' allowed")
    elif scheduler and not METHODS[method].stepwise:
        reason = f"stops trials by results on the way, and {method} reports once; null allowed"
        yield Fault(("scheduler",), scheduler, reason)


def suits_cmaes(sampled: Sequence[Space]) -> bool:
    """Whether CMA-ES suits the search spaces: two or more continuous dimensions; elsewhere Optuna
    samples at random."""
    return len(sampled) >= 2 and all(isinstance(space, Uniform | LogUniform) for space in sampled)
