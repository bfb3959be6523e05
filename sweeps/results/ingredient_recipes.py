"""Hyper-parameters that ingredients were trained with; chains that differ in one of them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.files.documents import checked, read_yaml
from fusion.errors import InputError

TrainingRecipe = Mapping[str, Any]
"""Hyper-parameter -> value."""

FILE = "recipe.yaml"
"""Beside an ingredient's weights; `sweeps train` writes it."""

BESIDE = ("kind", "task")
"""What a recipe says beside its hyper-parameters that makes another model."""

SEED = "seed"
"""No hyper-parameter here: it has no order, and runs of a search have one each."""


@dataclass(frozen=True)
class Chain:
    """Ingredients in the order of the one hyper-parameter they differ in."""

    hyperparameter: str
    fixed: str
    """Those of the others that are not the same in the whole pool, in words."""
    names: tuple[str, ...]
    values: tuple[float, ...]


def recipe_of(folder: Path) -> TrainingRecipe | None:
    """Hyper-parameters that an ingredient was trained with; None if its folder has no recipe.

    None also of a member of a population, which had others from one step to the next.

    Raises:
        InputError: not a recipe.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    where = f"{file}: not the recipe of an ingredient"
    try:
        content = checked(dict[str, Any], read_yaml(file), where)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if "params" not in content:
        raise InputError(f"{where}: params: missing")
    params = checked(dict[str, Any], content["params"], f"{where}: params")
    if content.get("schedule"):
        return None
    beside = {key: content[key] for key in BESIDE if key in content}
    return {**params, **beside}


def chains(recipes: Mapping[str, TrainingRecipe]) -> list[Chain]:
    """All sets of at least two ingredients that differ in one number only, ordered by it.

    Of several with the same value (other seeds, copies) the first named is taken.

    >>> pool = {"a": {"lr": 1e-5, "epochs": 4}, "b": {"lr": 1e-6, "epochs": 4}, "c": {"lr": 1e-5}}
    >>> [(chain.hyperparameter, chain.names, chain.fixed) for chain in chains(pool)]
    [('lr', ('b', 'a'), 'epochs=4')]
    """
    found: dict[tuple[str, str], dict[float, str]] = {}
    for name, recipe in recipes.items():
        own = {key: value for key, value in recipe.items() if key != SEED}
        for key, value in own.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value):
                continue
            rest = {other: each for other, each in own.items() if other != key}
            group = json.dumps(rest, sort_keys=True, default=str)
            found.setdefault((key, group), {}).setdefault(float(value), name)
    keys = {key for recipe in recipes.values() for key in recipe}
    alike = {
        key
        for key in keys
        if len({repr(recipe.get(key, BESIDE)) for recipe in recipes.values()}) == 1
    }
    return [
        Chain(
            key,
            words(json.loads(group), alike),
            tuple(by[v] for v in sorted(by)),
            tuple(sorted(by)),
        )
        for (key, group), by in sorted(found.items())
        if len(by) > 1
    ]


def words(recipe: TrainingRecipe, alike: Collection[str]) -> str:
    """`epochs=4 weight_decay=0.1`, without parameters that are equal in all."""
    return " ".join(f"{name}={value}" for name, value in recipe.items() if name not in alike)
