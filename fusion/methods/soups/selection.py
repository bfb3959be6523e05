"""Selection of ingredients by score: greedy soup, best single and oracle single."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from fusion.errors import InputError
from fusion.methods.soups.greedy import Tie
from fusion.methods.soups.ordering import Order


@dataclass(frozen=True)
class Selection:
    """Options of a selection of ingredients; all scores are those of one split."""

    order: Order = "validation"
    seed: int = 0
    ingredients: tuple[str, ...] | None = None
    """Names of the ingredients, in order for `order: given`; None: all."""
    tie: Tie = "ge"
    min_delta: float = 0.0
    prune: float | None = None
    """Ingredients more than this below the best score are left out; None: none."""
    replacement: bool = False
    start: tuple[str, ...] | None = None
    """Ingredients of the initial soup; None: the first in the order."""
    metric: str | None = None
    """Metric of the scores; None: the sweep's."""
    single: bool = False
    """Select one ingredient, without averaging."""
    role: Literal["select", "report"] = "select"


def greedy_soup(
    *,
    order: Order = "validation",
    seed: Annotated[int, Interval(ge=0)] = 0,
    ingredients: Sequence[str] | None = None,
    tie: Tie = "ge",
    min_delta: Annotated[float, Interval(ge=0)] = 0.0,
    prune: Annotated[float | None, Interval(ge=0)] = None,
    replacement: bool = False,
    start: Sequence[str] | None = None,
    metric: str | None = None,
) -> Selection:
    """Greedy soup: add ingredients in turn, and keep each that does not worsen the average.

    S = {first}; for each next i: keep i if score(mean of S ∪ {i}) ≥ score(mean of S). Scores are
    measured on the select split and never fall, so the soup is no worse there than the best
    ingredient. Several candidates are evaluated at once, assuming that all before them are
    rejected; those after an accepted one are evaluated again, so the result is that of one at a
    time.

    Args:
        order: `validation` (default, the paper's): by score, best first, equal ones by name;
            `random`: by `seed`; `given`: as listed in `ingredients`; `angle`: the best one, then by
            the angle of the task vector to the best one's, largest first.
        seed: of the random order.
        ingredients: ingredients to choose from. Default: all.
        tie: `ge` (default, the paper's) keeps an ingredient if the score is equal; `gt`, as in the
            released code, only if it is better. With `ge`, an ingredient that equals a kept one is
            skipped.
        min_delta: least gain of a candidate. Default 0.
        prune: leave out ingredients that are worse than the best by more than this. Default: none.
        replacement: an ingredient may be kept again, and then counts twice; passes go on until one
            keeps nothing. Default false.
        start: ingredients of the initial soup. Default: the first in the order.
        metric: `acc/<task>`, `acc/mean`, `nll/…`. Default: the sweep's metric.

    Raises:
        InputError: order `given` without ingredients.

    Source: Wortsman et al. 2022, arXiv:2203.05482, Recipe 1.
    """
    if order == "given" and ingredients is None:
        raise InputError("greedy_soup: order 'given' needs ingredients: [first, second, …]")
    return Selection(
        order=order,
        seed=seed,
        ingredients=None if ingredients is None else tuple(ingredients),
        tie=tie,
        min_delta=min_delta,
        prune=prune,
        replacement=replacement,
        start=None if start is None else tuple(start),
        metric=metric,
    )


def best_single() -> Selection:
    """Best single ingredient by score on the select split: the baseline of a soup.

    Of equal ones the first by name.

    Source: Wortsman et al. 2022, arXiv:2203.05482, table 1 (best on the held-out set).
    """
    return Selection(single=True)


def oracle_single() -> Selection:
    """Best single ingredient by score on the report split: an oracle, and marked as one.

    Of equal ones the first by name.

    Source: Wortsman et al. 2022, arXiv:2203.05482, table 1 (best on each test set).
    """
    return Selection(single=True, role="report")
