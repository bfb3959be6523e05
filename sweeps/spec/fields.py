"""Field types of sweep and training files: names, texts, sources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sweeps.spec.errors import custom_error
from sweeps.spec.search_space import WORDS

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
NAME_RULE = "a name of letters, digits, '.', '_' and '-' that starts with none of '.' and '-'"
TAKEN = ("mean", "seen", "unseen", "pretrained", *WORDS)
"""Names that `acc/mean`, the base and search spaces have taken."""


class Part(BaseModel):
    """Base of the models of a sweep file. Field descriptions say what is allowed; error messages
    quote them."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def check_name(name: str) -> str:
    """Return `name` if it is valid as a folder name and inside a metric's name."""
    if not NAME.fullmatch(name):
        raise custom_error(f"{NAME_RULE} allowed")
    if name in TAKEN:
        raise custom_error(f"another name needed: {', '.join(TAKEN)} are taken")
    return name


def check_names(named: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `named` if all its names are valid."""
    for name in named:
        check_name(name)
    return named


Name = Annotated[str, AfterValidator(check_name)]
Text = Annotated[str, Field(min_length=1)]
Source = Annotated[str, Field(min_length=1, description="a hub id or a folder")]


@dataclass(frozen=True)
class Racing:
    """How candidates are raced."""

    confidence: float | None = None
    """Probability with which a method's best candidate is found; None: it is always found."""


RACING = "racing"
EVALUATE = (
    "all (every candidate on all rows), racing (candidates that cannot win any more are stopped)"
    " or {racing: {confidence: …}} (those that are unlikely to win are)"
)
"""Allowed values of `evaluate`."""


def check_evaluate(value: Any) -> Any:
    """Return `value` if it says how candidates are evaluated; racing without options is one word.

    >>> check_evaluate({"racing": {}}), check_evaluate({"racing": {"confidence": 0.99}})
    ('racing', {'racing': {'confidence': 0.99}})
    """
    if value in ("all", RACING):
        return value
    if not isinstance(value, Mapping) or list(value) != [RACING]:
        raise custom_error(f"{EVALUATE} allowed")
    options = value[RACING] or {}
    if not isinstance(options, Mapping) or options.keys() - {"confidence"}:
        raise custom_error("{racing: {confidence: …}} allowed")
    given = options.get("confidence")
    if given is None:
        return RACING
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0.5 <= given < 1:
        raise custom_error("a confidence from 0.5 to 1, 1 excluded, allowed")
    return {RACING: {"confidence": float(given)}}


RESERVED = re.compile(
    r"mlflow\.db.*|mlflow-artifacts|.*\.\d{8}t\d{6}\.[0-9a-f]{4}|.*\.lock|.*\.part"
)
"""Names that other things in the folder of all sweeps have: the MLflow store and its journals, its
artifacts, sweeps that were moved aside, files that are being written. Of lower case."""


def check_reserved(name: str) -> str:
    """Return `name` if a sweep may have it; file systems that ignore case are considered.

    Raises:
        ValueError: the name is taken.

    >>> check_reserved("vit-b32")
    'vit-b32'
    """
    if RESERVED.fullmatch(name.lower()):
        raise ValueError("the name of something else in the outputs folder; another name needed")
    return name
