"""A recipe: which model is evaluated, merged or trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BASE = "pretrained"
"""The recipe of the base itself."""

REFERENCES = ("pretrained", "experts")
"""What can be evaluated beside the methods: the base, and each expert on its own task."""


@dataclass(frozen=True)
class Recipe:
    """What is evaluated: a method of `fusion.METHODS`, or a reference, with its parameters."""

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    learned: bytes | None = field(default=None, repr=False)
    """Of a method that learns: the file of what was learned (a gate, or a coding)."""
