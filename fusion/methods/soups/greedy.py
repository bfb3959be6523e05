"""Greedy selection of ingredients (greedy soup, greedy ensemble) as a resumable state machine.

Ingredients are numbers 0 … k − 1. A subset is a tuple of them, in order of acceptance. Larger
scores are better (use −NLL for a loss). The caller computes the score of a subset: for a soup, the
score of the averaged weights; for an ensemble, that of the averaged logits.

    state = begin(order, scores)
    while subsets := candidates(state, p):
        state = advance(state, [score of each subset])

The steps and the result are the same for every p. `advance` decides one candidate after the other,
and discards scores of subsets that assumed a rejection which did not happen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from fusion.errors import InputError
from fusion.methods.soups.ordering import checked

Tie: TypeAlias = Literal["ge", "gt"]
Subset: TypeAlias = tuple[int, ...]
Outcome: TypeAlias = Literal["start", "accepted", "rejected", "failed", "duplicate"]

PASSES = 8
"""Largest number of passes through the order with replacement, since a loss may improve for
ever."""


@dataclass(frozen=True)
class Step:
    """One decision of the selection."""

    candidate: Subset
    """The scored subset: the current subset and, last, the new ingredient."""
    ingredient: int
    outcome: Outcome
    """`failed`: the score is no finite number; `duplicate`: not scored, since a copy is in the
    subset; `start`: the score of the initial subset."""
    score: float | None = None
    best: float | None = None
    """The score to reach."""
    note: str = ""
    twin: int | None = None
    """For a duplicate: the ingredient of the subset that it is a copy of, which may be itself."""

    @property
    def accepted(self) -> bool:
        """Whether the candidate became the subset."""
        return self.outcome == "accepted"


@dataclass(frozen=True)
class Greedy:
    """State of a greedy selection: plain data that can be saved and resumed."""

    order: Subset
    """Ingredients in the order in which they are tried."""
    singles: tuple[float | None, ...]
    """Score of each ingredient alone; None: no finite number."""
    accepted: Subset
    """The current subset; with replacement an ingredient may occur more than once."""
    best: float | None
    """Score of the subset; None: not known yet (an initial subset of several ingredients)."""
    position: int
    """Next position in the order, counted through all passes."""
    tie: Tie = "ge"
    min_delta: float = 0.0
    replacement: bool = False
    passes: int = 1
    hashes: tuple[str, ...] | None = None
    """Content hash of each ingredient."""
    tried: Subset = ()
    """Ingredients that were rejected since the subset last grew."""
    steps: tuple[Step, ...] = ()
    rounds: int = 0
    """Number of calls of `advance`."""
    evaluations: int = 0
    """Number of scores passed to `advance`, including discarded ones."""

    @property
    def subset(self) -> Subset:
        """The current subset; at the end, the result."""
        return self.accepted

    @property
    def failed(self) -> Subset:
        """Ingredients with a score that is no finite number."""
        return tuple(step.ingredient for step in self.steps if step.outcome == "failed")


def begin(
    order: Sequence[int],
    scores: Sequence[float],
    *,
    start: Sequence[int] = (),
    start_score: float | None = None,
    tie: Tie = "ge",
    min_delta: float = 0.0,
    replacement: bool = False,
    passes: int | None = None,
    hashes: Sequence[str] | None = None,
) -> Greedy:
    """Start a selection. The first ingredient is accepted without a new score.

    Args:
        order: ingredients, each at most once (`order_of`). Those without a finite score are left
            out and recorded as `failed`.
        scores: score of each of the k ingredients alone.
        start: initial subset. Default: the first ingredient of the order.
        start_score: score of `start`; known for a single ingredient, else it is requested first.
        tie: `ge`: accept a candidate if score ≥ best + min_delta, as in the paper (default). `gt`:
            if score > best + min_delta, as in the released code.
        min_delta: least gain, ≥ 0. Default 0, as in the paper.
        replacement: an ingredient may be accepted again (it then has more weight), only if score >
            best. Rejected ones are tried again after an acceptance, until a whole pass accepts
            none. Default false, as in the paper.
        passes: largest number of passes through the order. Default 1; with replacement 8.
        hashes: content hashes of all k ingredients. With `ge` a copy of an accepted ingredient
            would always tie, so it is skipped; with both rules an ingredient is skipped if it would
            not change the model.

    Raises:
        InputError: no ingredient has a finite score; arguments that do not fit.
    """
    count = len(scores)
    if not (math.isfinite(min_delta) and min_delta >= 0):
        raise InputError(f"min_delta: {min_delta!r}; a finite number >= 0 needed")
    if hashes is not None and len(hashes) != count:
        raise InputError(f"hashes: {len(hashes)} given; one for each of {count} ingredients needed")
    if passes is not None and passes < 1:
        raise InputError(f"passes: {passes}; an integer >= 1 needed")
    order = checked("order", order, count)
    singles = tuple(float(s) if math.isfinite(s) else None for s in scores)
    asked = tuple(i for i in order if singles[i] is not None)
    given = checked("start", start, count, distinct=not replacement)
    accepted = given or asked[:1]
    if not accepted:
        raise InputError("no ingredient has a finite score; at least one needed")
    best = singles[accepted[0]] if len(set(accepted)) == 1 else start_score
    if best is not None and not math.isfinite(best):
        raise InputError(f"start_score: {best!r}; a finite number needed")
    state = Greedy(
        order=asked,
        singles=singles,
        accepted=accepted,
        best=best,
        position=0 if given else 1,
        tie=tie,
        min_delta=min_delta,
        replacement=replacement,
        passes=passes or (PASSES if replacement else 1),
        hashes=None if hashes is None else tuple(hashes),
        steps=tuple(
            Step((i,), i, "failed", note=f"own score {float(scores[i])}")
            for i in order
            if singles[i] is None
        ),
    )
    return settled(state)


def copies(state: Greedy, i: int, j: int) -> bool:
    """Whether two ingredients have equal weights."""
    return i == j or (state.hashes is not None and state.hashes[i] == state.hashes[j])


def upcoming(state: Greedy) -> Iterator[tuple[int, int, bool]]:
    """Ingredients still to come if all are rejected: (position, ingredient, skipped or not)."""
    tried = set(state.tried)
    for position in range(state.position, state.passes * len(state.order)):
        i = state.order[position % len(state.order)]
        if i in tried or (i in state.accepted and not state.replacement):
            continue
        tried.add(i)
        twins = [copies(state, i, j) for j in state.accepted]
        guarded = state.tie == "ge" and not state.replacement
        yield position, i, any(twins) if guarded else all(twins)


def settled(state: Greedy) -> Greedy:
    """Skip and record copies of accepted ingredients, up to the next candidate to score."""
    for position, i, skipped in upcoming(state):
        if not skipped:
            break
        twin = next(j for j in state.accepted if copies(state, i, j))
        note = f"a copy of {twin}" if twin != i else "the model would be the same"
        step = Step((*state.accepted, i), i, "duplicate", None, state.best, note, twin)
        state = replace(
            state, position=position + 1, tried=(*state.tried, i), steps=(*state.steps, step)
        )
    return state


def candidates(state: Greedy, p: int = 1) -> list[Subset]:
    """The next p subsets to score, assuming that all before them are rejected; [] at the end.

    Each is the current subset plus one ingredient, the last. If the score of the initial subset is
    not known, the initial subset itself is the first.

    Raises:
        InputError: p below 1.
    """
    if p < 1:
        raise InputError(f"p: {p}; an integer >= 1 needed")
    found = [state.accepted] if state.best is None else []
    for _, i, skipped in upcoming(state):
        if len(found) == p:
            break
        if not skipped:
            found.append((*state.accepted, i))
    return found


def advance(state: Greedy, scores: Sequence[float]) -> Greedy:
    """The state after the scores of `candidates(state, len(scores))`, in their order.

    The first candidate that passes is accepted. Scores after it belong to another subset and are
    discarded. A score that is no finite number is a rejection, recorded as `failed`.

    Raises:
        InputError: more scores than candidates, or none.
    """
    asked = len(candidates(state, max(1, len(scores))))
    if not 1 <= len(scores) <= asked:
        raise InputError(f"scores: {len(scores)} given; 1 to {asked} candidates were asked")
    state = replace(state, rounds=state.rounds + 1, evaluations=state.evaluations + len(scores))
    for score in scores:
        before = state.accepted
        state = decided(state, float(score))
        if state.accepted != before:
            break
    return state


def decided(state: Greedy, score: float) -> Greedy:
    """The state after the score of its next candidate."""
    if state.best is None:
        return started(state, score)
    position, i, _ = next(upcoming(state))
    candidate = (*state.accepted, i)
    finite = math.isfinite(score)
    taken = finite and passes_rule(state, i, score)
    step = Step(
        candidate,
        i,
        "accepted" if taken else "rejected" if finite else "failed",
        score if finite else None,
        state.best,
        "" if finite else f"score {score}",
    )
    state = replace(state, position=position + 1, steps=(*state.steps, step))
    if taken:
        return settled(replace(state, accepted=candidate, best=score, tried=()))
    return settled(replace(state, tried=(*state.tried, i)))


def started(state: Greedy, score: float) -> Greedy:
    """The state after the score of its initial subset.

    Raises:
        InputError: the score is no finite number.
    """
    if not math.isfinite(score):
        raise InputError(f"start: {list(state.accepted)} scores {score}; a finite score needed")
    step = Step(state.accepted, state.accepted[-1], "start", score)
    return replace(state, best=score, steps=(*state.steps, step))


def passes_rule(state: Greedy, i: int, score: float) -> bool:
    """Whether a finite score is accepted; a copy of an accepted ingredient must improve it."""
    assert state.best is not None
    needed = state.best + state.min_delta
    if state.tie == "gt" or any(copies(state, i, j) for j in state.accepted):
        return score > needed
    return score >= needed


def greedy(
    order: Sequence[int],
    scores: Sequence[float],
    evaluate: Callable[[Sequence[Subset]], Sequence[float]],
    p: int = 1,
    **rule: Any,
) -> Greedy:
    """Run a greedy selection to its end; `rule`: the options of `begin`.

    S = {first}; for each next i: accept S ∪ {i} where score(S ∪ {i}) ≥ score(S). The result never
    scores below the first, which in the order by validation is the best single ingredient.

    Args:
        order: `order_of`.
        scores: each ingredient's own score.
        evaluate: scores of subsets, at most p of them at a time.
        p: candidates asked at once; the result does not depend on it.

    Source: Wortsman et al. 2022, arXiv:2203.05482, recipe 1. Speculation is ours.

    >>> table = {(0, 1): 0.7, (0, 2): 0.9}
    >>> found = greedy([0, 1, 2], [0.8, 0.7, 0.6], lambda asked: [table[s] for s in asked], p=2)
    >>> found.subset, found.best, found.rounds, found.evaluations
    ((0, 2), 0.9, 1, 2)
    """
    return run(begin(order, scores, **rule), evaluate, p)


def run(
    state: Greedy, evaluate: Callable[[Sequence[Subset]], Sequence[float]], p: int = 1
) -> Greedy:
    """Run a selection from its current state to its end."""
    while subsets := candidates(state, p):
        state = advance(state, evaluate(subsets))
    return state
