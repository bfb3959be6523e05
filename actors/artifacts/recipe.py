"""Recipe: method, hyper-parameters and learned file of a model to evaluate, merge or train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BASE = "pretrained"
"""Name of the recipe of the base model."""

REFERENCES = ("pretrained", "experts")
"""Recipes beside the methods: the base, and each expert on its own task."""


@dataclass(frozen=True)
class Recipe:
    """A method of `fusion.METHODS` or a reference, with its hyper-parameters."""

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    learned: bytes | None = field(default=None, repr=False)
    """Bytes of the learned file (a gate, a coding, …) of a method that learns."""
    task: str | None = None
    """The expert whose model is built, of a method that makes one model for each task."""
