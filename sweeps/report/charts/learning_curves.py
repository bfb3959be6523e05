"""Learning curves: loss and coding against the step, for each method that learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fusion.errors import InputError
from fusion.methods.learned.steps import Shape
from fusion.parameters import bind
from fusion.registry import METHODS, Adaptive, InModel
from sweeps.console.number_format import params_text
from sweeps.results.ledger import Entry

Points = list[tuple[float, float]]
Reduce = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Learned:
    """The learning curve of one trial."""

    entry: Entry
    asked: int
    """Steps that it was to take."""
    selected: bool

    @property
    def stopped(self) -> bool:
        """Whether it was stopped before its last step."""
        return self.entry.steps < self.asked

    @property
    def steps(self) -> str:
        """`20 of 60`; `60` if it took all."""
        return f"{self.entry.steps} of {self.asked}" if self.stopped else f"{self.entry.steps}"

    def points(self, name: str) -> Points:
        """(step, value) of its checkpoints, finite values only."""
        found = ((point["step"], point.get(name, math.nan)) for point in self.entry.curve)
        return [(step, value) for step, value in found if math.isfinite(value)]


def asked_steps(entry: Entry) -> int:
    """The steps that a trial was configured with, including defaults; if unknown, those that it
    took.

    >>> asked_steps(Entry("k", "adamerging", "adaptive", {}, "done", "select", steps=20))
    1000
    """
    row = METHODS.get(entry.method)
    params = entry.params
    if isinstance(row, Adaptive):
        with suppress(InputError):  # of another version of the method
            params = bind(entry.method, row.parameters, params)
    if isinstance(row, InModel):
        with suppress(InputError):
            return row.plan(Shape((), ()), **params).steps
    return int(params.get("steps", entry.steps))


def steps_text(entry: Entry) -> str:
    """`20 of 60`; empty for a trial that learned nothing."""
    return Learned(entry, asked_steps(entry), False).steps if entry.steps else ""


def learned(entries: Iterable[Entry], selected: Mapping[str, str | None]) -> list[list[Learned]]:
    """Trials with a curve, by method; the selected one is last, to be drawn on top.

    Args:
        entries: the ledger, in the order of the report.
        selected: method -> key of its selected trial.
    """
    methods: dict[str, list[Learned]] = {}
    for entry in entries:
        chosen = selected.get(entry.method) == entry.trial_key
        curve = Learned(entry, asked_steps(entry), chosen)
        if curve.points("loss"):
            methods.setdefault(entry.method, []).append(curve)
    return [sorted(found, key=lambda each: each.selected) for found in methods.values()]


def figures(entries: Iterable[Entry], selected: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """Figures of the report's section on learning, one for each method."""
    return [figure(curves) for curves in learned(entries, selected)]


def figure(curves: Sequence[Learned]) -> dict[str, Any]:
    """The curves of one method, with their description."""
    last = curves[-1]
    return {
        "method": last.entry.method,
        "chosen": chosen_text(last, varied(curves)) if last.selected else "",
        "stopped": sum(curve.stopped for curve in curves),
        "curves": curves,
        "coding": last if last.selected and last.points("coding/mean") else None,
    }


def chosen_text(curve: Learned, varying: Sequence[str]) -> str:
    """The selected trial: its steps and how its loss changed, in words."""
    losses = [loss for _, loss in curve.points("loss")]
    params = {name: curve.entry.params[name] for name in varying if name in curve.entry.params}
    where = f"{params_text(params)}, " if params else ""
    return (
        f"selected: {where}{curve.steps} steps; "
        f"loss {losses[0]:.3g} at first, {losses[-1]:.3g} at last"
    )


def varied(curves: Sequence[Learned]) -> list[str]:
    """The parameters in which the trials differ."""
    names = dict.fromkeys(name for curve in curves for name in curve.entry.params)
    return [name for name in names if len({repr(c.entry.params.get(name)) for c in curves}) > 1]


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return math.fsum(values) / len(values)


def thinned(points: Points, most: int, reduce: Reduce = mean) -> Points:
    """At most `most` points: each is the last step of a range, with its values reduced to one.

    >>> thinned([(5, 4.0), (10, 2.0), (15, 1.0)], 2)
    [(10, 3.0), (15, 1.0)]
    """
    size = math.ceil(len(points) / most)
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    return [(each[-1][0], reduce([value for _, value in each])) for each in stretches]
