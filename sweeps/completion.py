"""The methods that every comparison has."""

from __future__ import annotations

from sweeps.entry import MethodSpec
from sweeps.spec import SweepSpec

ALWAYS = ("simple_average", "ensemble")
"""With their defaults, where the spec does not list them."""


def completed(spec: SweepSpec) -> SweepSpec:
    """The spec with those methods in it."""
    missing = {name: MethodSpec() for name in ALWAYS if name not in spec.methods}
    return spec.model_copy(update={"methods": {**spec.methods, **missing}})
