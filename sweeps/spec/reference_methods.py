"""Rows that every comparison has beside the methods of the sweep file."""

from __future__ import annotations

from actors.artifacts.recipe import REFERENCES
from actors.experts.metrics import EXACT, metric_of
from fusion.registry import METHODS
from sweeps.spec.method import MethodSpec
from sweeps.spec.sweep import SweepSpec

ALWAYS = ("simple_average", "ensemble")
"""With their defaults, where the spec does not list them."""

OF_INGREDIENTS = ("uniform_soup", "best_single", "oracle_single", "ensemble")
"""The same, of a pool of ingredients: what a soup is measured against."""


def is_soup(spec: SweepSpec) -> bool:
    """Whether the pool is a set of ingredients: several runs of the same tasks, and no expert of
    one task."""
    return spec.pool.experts.keys().isdisjoint(spec.tasks)


def references(spec: SweepSpec) -> tuple[str, ...]:
    """Names of the reference rows: the base, each expert on its own task if the pool has experts,
    and the finished models of the sweep file."""
    always = (name for name in REFERENCES if name != "experts" or not is_soup(spec))
    return (*always, *spec.references)


def completed(spec: SweepSpec) -> SweepSpec:
    """The sweep file with the methods that every comparison has; `prepare` calls it once.

    Completed once more, it stays the same. Rows that write no answers are left out where the metric
    is exact match.
    """
    always: tuple[str, ...] = OF_INGREDIENTS if is_soup(spec) else ALWAYS
    if metric_of(spec.metric) is EXACT:
        always = tuple(name for name in always if METHODS[name].output != "logits")
    missing = {name: MethodSpec() for name in always if name not in spec.methods}
    return spec.model_copy(update={"methods": {**spec.methods, **missing}})
