"""Profiles: accuracy against the hyper-parameters that a method swept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.console.number_format import params_text
from sweeps.results.ledger import Entry

MIN_TRIALS = 8
"""Fewer trials tell nothing of the importance of parameters."""

MIN_VALUES = 3
"""Fewer tried values make no curve."""

LOG_RATIO = 50.0
"""Positive values that span more than this were searched by order of magnitude."""


@dataclass(frozen=True)
class Tried:
    """One finished trial, as a point."""

    at: tuple[float, ...]
    """Values of the swept numeric parameters."""
    series: str
    """The other parameters that vary, in words; empty where none does."""
    accuracy: Mapping[str, float]
    """`mean` and each task."""
    selected: bool
    label: str


@dataclass(frozen=True)
class Profile:
    """The trials of one method that swept at least one numeric parameter."""

    method: str
    names: tuple[str, ...]
    logs: tuple[bool, ...]
    tasks: tuple[str, ...]
    points: tuple[Tried, ...]

    @property
    def chosen(self) -> Tried | None:
        """The selected trial, if it is one of them."""
        return next((point for point in self.points if point.selected), None)


def profiles(
    entries: Iterable[Entry],
    selected: Mapping[str, str | None],
    tasks: Sequence[str],
    metric: str = "acc",
) -> list[Profile]:
    """A profile for each method that tried at least three values of some numeric parameter.

    Args:
        entries: the ledger.
        selected: method -> key of its selected trial.
        tasks: the tasks, in order.
        metric: name of the metric that is drawn.
    """
    methods: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.status == "done" and math.isfinite(entry.metrics.get(f"{metric}/mean", math.nan)):
            methods.setdefault(entry.method, []).append(entry)
    found = (
        profile(name, tried, selected.get(name), tasks, metric) for name, tried in methods.items()
    )
    return [each for each in found if each]


def profile(
    method: str,
    entries: Sequence[Entry],
    selected: str | None,
    tasks: Sequence[str],
    metric: str = "acc",
) -> Profile | None:
    """The profile of one method; None if nothing numeric was swept."""
    given = [flat(entry.params) for entry in entries]
    varying = [name for name in dict.fromkeys(n for params in given for n in params) if
               len({repr(params.get(name)) for params in given}) > 1]  # fmt: skip
    names = together(
        [
            name
            for name in varying
            if len({params[name] for params in given if is_number(params.get(name))}) >= MIN_VALUES
        ],
        given,
    )
    if not names:
        return None
    points = []
    for entry, params in zip(entries, given, strict=True):
        values = [params.get(name) for name in names]
        if all(map(is_number, values)):
            rest = {n: params[n] for n in varying if n not in names and n in params}
            points.append(
                Tried(
                    at=tuple(float(value) for value in values if value is not None),
                    series=params_text(rest) if rest else "",
                    accuracy=accuracies(entry, tasks, metric),
                    selected=entry.trial_key == selected,
                    label=params_text({name: params[name] for name in names}),
                )
            )
    if not points:
        return None
    columns = list(zip(*(point.at for point in points), strict=True))
    logs = tuple(min(column) > 0 and max(column) / min(column) > LOG_RATIO for column in columns)
    return Profile(method, names, logs, tuple(tasks), tuple(sorted(points, key=lambda p: p.at)))


def together(names: Sequence[str], given: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Those of the names that most trials have a number for.

    A parameter can be a number in some trials and a mapping of numbers in others.

    >>> together(["scale", "scale.a"], [{"scale": 1}, {"scale.a": 1}, {"scale.a": 2}])
    ('scale.a',)
    """
    sets = Counter(tuple(name for name in names if is_number(params.get(name))) for params in given)
    return max(sets, key=lambda found: (bool(found), sets[found], len(found)), default=())


def flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters under dotted names.

    >>> flat({"weights": {"a": 1.0}, "scale": 0.3})
    {'weights.a': 1.0, 'scale': 0.3}
    """
    named: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            named |= flat(value, f"{prefix}{key}.")
        else:
            named[f"{prefix}{key}"] = value
    return named


def importance(profile: Profile) -> dict[str, float]:
    """Share of the variance of the mean accuracy that each parameter explains: fANOVA.

    Empty with fewer than two parameters, with fewer than `MIN_TRIALS` trials, or if all trials are
    equally accurate.

    Source: Hutter et al. 2014 (ICML), Optuna's implementation.
    """
    means = [point.accuracy["mean"] for point in profile.points]
    if len(profile.names) < 2 or len(means) < MIN_TRIALS or len(set(means)) < 2:
        return {}
    import optuna  # start-up time: reports of other sweeps need none of it

    columns = list(zip(*(point.at for point in profile.points), strict=True))
    ranges = {
        name: optuna.distributions.FloatDistribution(min(column), max(column), log=log)
        for name, column, log in zip(profile.names, columns, profile.logs, strict=True)
        if max(column) > min(column)
    }
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize")
        for point, mean in zip(profile.points, means, strict=True):
            values = dict(zip(profile.names, point.at, strict=True))
            study.add_trial(
                optuna.trial.create_trial(
                    params={name: values[name] for name in ranges},
                    distributions=ranges,
                    value=mean,
                )
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    finally:
        optuna.logging.set_verbosity(level)


def accuracies(entry: Entry, tasks: Sequence[str], metric: str) -> dict[str, float]:
    """The metric's finite values: `mean` and the tasks."""
    names = ("mean", *tasks)
    found = {name: entry.metrics.get(f"{metric}/{name}", math.nan) for name in names}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number (bools are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def curves(profile: Profile, name: str, dimension: int = 0) -> dict[str, list[tuple[float, float]]]:
    """Series -> (value, accuracy), by value; trials of one value (other seeds) are averaged.

    Args:
        profile: the trials.
        name: `mean` or a task.
        dimension: which of the swept parameters is the abscissa.
    """
    grouped: dict[str, dict[float, list[float]]] = {}
    for point in profile.points:
        if name in point.accuracy:
            line = grouped.setdefault(point.series, {})
            line.setdefault(point.at[dimension], []).append(point.accuracy[name])
    return {
        series: [(at, math.fsum(values) / len(values)) for at, values in sorted(line.items())]
        for series, line in grouped.items()
    }
