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
    """How ingredients are chosen; scores are those of one split."""

    order: Order = "validation"
    seed: int = 0
    ingredients: tuple[str, ...] | None = None
    """The pool, and the order where it is given; None: all."""
    tie: Tie = "ge"
    min_delta: float = 0.0
    prune: float | None = None
    """Ingredients that are worse than the best by more than this are left out."""
    replacement: bool = False
    start: tuple[str, ...] | None = None
    """What the soup begins with; None: the first in the order."""
    metric: str | None = None
    """What is compared; None: the sweep's metric."""
    single: bool = False
    """One ingredient only: nothing is mixed."""
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
    """Take ingredients in turn, and keep each with which the mean of those kept is not worse.

    S = {first}; for each next i: keep i where score(mean of S ∪ {i}) ≥ score(mean of S). The score
    is measured on the select split; it never falls, so the soup is no worse there than the best
    ingredient. Candidates are evaluated several at a time, as if all before them were rejected;
    what comes after one that is kept is evaluated again: the result is that of one at a time.

    Args:
        order: `validation`: by score, best first, the paper's; `random`, by `seed`; `given`: as
            `ingredients` names them; `angle`: the best one, then those whose task vectors stand
            at the largest angle to its.
        seed: of the random order.
        ingredients: which may be taken; default all.
        tie: `ge` keeps what is as good, as the paper has it; `gt` only what is better, as its
            code does. Of a `ge`, an ingredient that equals one kept already is passed over.
        min_delta: how much better a candidate must be. Default 0.
        prune: leave out ingredients worse than the best by more than this. Default: none.
        replacement: an ingredient may be taken again, and then counts twice; rounds go on until
            one keeps nothing.
        start: begin with the mean of these. Default: with the first in the order.
        metric: `acc/<task>`, `acc/mean`, `nll/…`. Default: what the sweep is judged by.

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
    """The ingredient with the best score on the select split: what a soup is measured against.

    Source: Wortsman et al. 2022, arXiv:2203.05482, table 1 (best on the held-out set).
    """
    return Selection(single=True)


def oracle_single() -> Selection:
    """The ingredient with the best score on the report split: an oracle, and marked as one.

    Source: Wortsman et al. 2022, arXiv:2203.05482, table 1 (best on each test set).
    """
    return Selection(single=True, role="report")
