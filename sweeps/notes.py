"""What a reader must know of a row beside its numbers: which images it has seen, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusion.dawin import is_oracle, transductive
from fusion.parameters import bind
from fusion.registry import METHODS, Adaptive, Fitted, Resident, Routed, Selected
from sweeps.compare import ORACLE
from sweeps.spec import SplitSpec

CHOSEN_ON_FIT = "chosen on the rows that are trained on, splits.select being splits.fit"

AVERAGES = (
    "simple_average", "weighted_average", "uniform_soup", "greedy_soup", "learned_soup",
    "ensemble", "greedy_ensemble",
)  # fmt: skip
"""Methods that do nothing with one ingredient, and of which a reader must know what is there
twice."""


def notes_of(method: str, params: Mapping[str, Any], splits: SplitSpec) -> tuple[str, ...]:
    """Short remarks; none for a method that sees nothing but weights.

    >>> notes_of("adamerging", {"adapt_on": "report"}, SplitSpec())
    ('adapted to the unlabelled test images it is reported on',)
    """
    row = METHODS.get(method)
    if isinstance(row, Adaptive | Resident):
        return learned_from(row, bind(method, row.parameters, params), splits)
    if isinstance(row, Fitted):
        split = " and ".join(dict.fromkeys([*([splits.fit] if row.fits else []), splits.select]))
        same = f"; {CHOSEN_ON_FIT}" if row.fits and splits.fit == splits.select else ""
        return (f"fitted to labelled {split} embeddings, task by task{same}",)
    if isinstance(row, Selected):
        if row.selection(**params).role == "select":
            return (CHOSEN_ON_FIT,) if splits.fit == splits.select else ()
        return (f"{ORACLE}: chosen by the labels it is measured by",)
    if isinstance(row, Routed):
        found = []
        if is_oracle(params):
            found.append(f"{ORACLE}: reads the labels it is measured by")
        if transductive(params):
            found.append("coefficients read off all images it is measured on, without labels")
        return tuple(found)
    return ()


def notes_of_pool(method: str, hashes: Mapping[str, str]) -> tuple[str, ...]:
    """Remarks on a method that averages ingredients: there is one only, or some are the same.

    Args:
        method: of the row.
        hashes: ingredient -> content hash of its checkpoint.

    >>> notes_of_pool("uniform_soup", {"a": "x", "b": "y", "c": "x"})
    ('c is a copy of a',)
    >>> notes_of_pool("greedy_soup", {"a": "x"})
    ('one ingredient: nothing is averaged',)
    """
    if method not in AVERAGES:
        return ()
    if len(hashes) == 1:
        return ("one ingredient: nothing is averaged",)
    first: dict[str, str] = {}
    for name, key in hashes.items():
        first.setdefault(key, name)
    return tuple(
        f"{name} is a copy of {first[key]}" for name, key in hashes.items() if first[key] != name
    )


def learned_from(
    row: Adaptive | Resident, params: Mapping[str, Any], splits: SplitSpec
) -> tuple[str, ...]:
    """Which images a method has learned from, and whether it is measured on them."""
    role = params["adapt_on"]
    split = getattr(splits, role)
    if not params["steps"] and not params.get("coefficient_steps"):
        return ()
    if isinstance(row, Adaptive) and row.labelled:
        optimistic = "; its score there is no measurement" if role == "select" else ""
        return (f"learned from {split} images with their labels{optimistic}",)
    if split == splits.report:
        return (f"adapted to the unlabelled {split} images it is reported on",)
    return (f"adapted to unlabelled {split} images",)
