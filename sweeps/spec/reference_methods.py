"""The rows that every comparison has beside the methods asked for."""

from __future__ import annotations

from actors.artifacts.recipe import REFERENCES
from sweeps.spec.method import MethodSpec
from sweeps.spec.sweep import SweepSpec

ALWAYS = ("simple_average", "ensemble")
"""With their defaults, where the spec does not list them."""

OF_INGREDIENTS = ("uniform_soup", "best_single", "oracle_single", "ensemble")
"""The same, of a pool of ingredients: what a soup is measured against."""


def is_soup(spec: SweepSpec) -> bool:
    """Whether the pool holds ingredients, many runs of the same tasks, and no expert of one."""
    return spec.pool.experts.keys().isdisjoint(spec.tasks)


def references(spec: SweepSpec) -> tuple[str, ...]:
    """What is evaluated beside the methods: the base and, of experts, each on its own task."""
    return tuple(name for name in REFERENCES if name != "experts" or not is_soup(spec))


def completed(spec: SweepSpec) -> SweepSpec:
    """The spec with those methods in it; `prepare` does it once, for all that runs.

    Completed once more, it stays the same.
    """
    always = OF_INGREDIENTS if is_soup(spec) else ALWAYS
    missing = {name: MethodSpec() for name in always if name not in spec.methods}
    return spec.model_copy(update={"methods": {**spec.methods, **missing}})
