"""The methods that every comparison has."""

from __future__ import annotations

from collections.abc import Iterable

from sweeps.compare import REFERENCES
from sweeps.entry import MethodSpec
from sweeps.ledger import Entry
from sweeps.spec import SweepSpec

ALWAYS = ("simple_average", "ensemble")
"""With their defaults, where the spec does not list them."""


def completed(spec: SweepSpec) -> SweepSpec:
    """The spec with those methods in it."""
    missing = {name: MethodSpec() for name in ALWAYS if name not in spec.methods}
    return spec.model_copy(update={"methods": {**spec.methods, **missing}})


def counted(entries: Iterable[Entry], spec: SweepSpec) -> list[Entry]:
    """The trials that a sweep's comparison counts: of references and of methods it has now.

    A trial of one of its methods counts even where an extended spec no longer means its
    parameters: it was measured as all others were.
    """
    methods = {*completed(spec).methods, *REFERENCES}
    return [entry for entry in entries if entry.method in methods]
