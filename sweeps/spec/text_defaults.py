"""Defaults of methods that differ for pools of text models."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fusion.registry import METHODS
from sweeps.spec.method import MethodSpec
from sweeps.spec.sweep import SweepSpec

BASE = "base"
"""As an extractor: the pool's own base."""

DEFAULTS: Mapping[str, Any] = MappingProxyType({"extractor": BASE, "rate": "per_norm"})
"""Of gates. Features of sentence encoders have norms that differ by a hundred and more from a
ResNet's: at the published plain rate of 5e-6 codings move by 0.04 in 1000 steps."""

RATE = 5e-3
"""Learning rate where neither it nor `rate` is given: that of image gates, per norm."""


def for_texts(spec: SweepSpec) -> SweepSpec:
    """The sweep file with the defaults of text pools where it names no value.

    A gate reads the base's own encoder, and its learning rate is per norm. `rate: plain` with
    `learning_rate: 5e-6` is as published. For texts once more it stays the same.
    """
    methods = {name: gated(name, entry) for name, entry in spec.methods.items()}
    return spec.model_copy(update={"methods": methods})


def gated(name: str, entry: MethodSpec) -> MethodSpec:
    """One method with the defaults of text pools, as far as it has the parameters."""
    schema = METHODS[name].parameters
    if not DEFAULTS.keys() <= schema.keys():
        return entry
    more = {key: value for key, value in DEFAULTS.items() if key not in entry.params}
    if "rate" in more and "learning_rate" not in entry.params:
        more["learning_rate"] = RATE
    return entry.model_copy(update={"params": {**entry.params, **more}})
