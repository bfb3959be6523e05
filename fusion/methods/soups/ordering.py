"""Order in which a greedy selection tries ingredients, and pruning of weak ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import torch

from fusion.errors import InputError

Order: TypeAlias = Literal["validation", "random", "given", "angle"]


def order_of(
    scores: Sequence[float],
    order: Order = "validation",
    *,
    seed: int = 0,
    given: Sequence[int] | None = None,
    angles: Any = None,
    names: Sequence[str] = (),
) -> list[int]:
    """The order in which ingredients are tried.

    * `validation`: by score, best first; equal ones by name. The paper's, which says nothing of
      equal ones.
    * `random`: a permutation from `seed`. The paper's ablation.
    * `given`: as `given` says; ingredients it leaves out are not asked.
    * `angle`: the best ingredient, then those whose task vectors make the largest angle with its,
      largest first; equal ones by score. Unknown angles (of a zero task vector) come last.

    Ingredients without a finite score come last; `begin` leaves them out.

    Args:
        scores: k scores.
        order: which.
        seed: of `random`.
        given: of `given`: ingredients, none twice.
        angles: of `angle`: [k, k], between task vectors, in any unit.
        names: of the ingredients, so that their order in the pool does not matter. Default: equal
            ones stay as they are.

    Raises:
        InputError: what the order needs is absent or does not fit.

    Source: Wortsman et al. 2022, arXiv:2203.05482, recipe 1 and appendix (random order). The order
    by angle is ours: models at large angles gain most from averaging (their fig. 2).

    >>> order_of([0.7, 0.9, 0.9, 0.8]), order_of([0.7, 0.9], "given", given=[0, 1])
    ([1, 2, 3, 0], [0, 1])
    >>> order_of([0.7, 0.9, 0.9], names=["a", "c", "b"])
    [2, 1, 0]
    """
    if order == "random":
        generator = torch.Generator().manual_seed(seed)
        return [int(i) for i in torch.randperm(len(scores), generator=generator).tolist()]
    if order == "given":
        if given is None:
            raise InputError("given: not given; the order 'given' needs a list of ingredients")
        return list(checked("given", given, len(scores)))
    named = sorted(range(len(scores)), key=lambda i: names[i] if names else "")
    ranked = sorted(named, key=lambda i: -known(scores[i]))
    if order == "validation" or not ranked:
        return ranked
    if angles is None:
        raise InputError("angles: not given; the order 'angle' needs those of all pairs")
    matrix = torch.as_tensor(angles, dtype=torch.float64)
    if matrix.shape != (len(scores), len(scores)):
        raise InputError(f"angles: shape {list(matrix.shape)}; [{len(scores)}, {len(scores)}]")
    row = [known(angle) for angle in matrix[ranked[0]].tolist()]
    rest = sorted(ranked[1:], key=lambda i: (not math.isfinite(scores[i]), -row[i]))
    return [ranked[0], *rest]


def known(value: float) -> float:
    """`value`, or −∞ if it is no finite number."""
    return float(value) if math.isfinite(value) else -math.inf


def pruned(scores: Sequence[float], delta: float) -> list[int]:
    """Ingredients with finite scores at most δ below the best, s_i ≥ max s − δ.

    Raises:
        InputError: a negative delta or NaN.

    >>> pruned([0.5, 0.75, float("nan"), 0.25], 0.25)
    [0, 1]
    """
    if not delta >= 0:
        raise InputError(f"delta: {delta!r}; a number >= 0 needed")
    best = max(map(known, scores), default=-math.inf)
    return [i for i, s in enumerate(scores) if math.isfinite(s) and not s < best - delta]


def checked(
    field: str, ingredients: Iterable[int], count: int, *, distinct: bool = True
) -> tuple[int, ...]:
    """Ingredients as a tuple.

    Raises:
        InputError: an ingredient that does not exist, or occurs twice.
    """
    found = tuple(int(i) for i in ingredients)
    for i in found:
        if not 0 <= i < count:
            raise InputError(f"{field}: ingredient {i}; 0 to {count - 1} allowed")
        if distinct and found.count(i) > 1:
            raise InputError(f"{field}: ingredient {i} is there twice")
    return found
