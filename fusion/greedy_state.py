"""Where a greedy selection stands: plain data, from which it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

Tie: TypeAlias = Literal["ge", "gt"]
Subset: TypeAlias = tuple[int, ...]
Outcome: TypeAlias = Literal["start", "accepted", "rejected", "failed", "duplicate", "vanished"]


@dataclass(frozen=True)
class Step:
    """One decision."""

    candidate: Subset
    """What was asked: the subset so far and, last, the ingredient."""
    ingredient: int
    outcome: Outcome
    """`failed`: its score was no finite number; `duplicate`: not asked, a copy is in;
    `start`: the score of the subset it all began with."""
    score: float | None = None
    best: float | None = None
    """What had to be reached."""
    note: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the candidate became the subset."""
        return self.outcome == "accepted"


@dataclass(frozen=True)
class Greedy:
    """Where a selection stands: plain data, from which it goes on."""

    order: Subset
    """Ingredients in the order they are asked."""
    singles: tuple[float | None, ...]
    """Each ingredient's own score; None: no finite number."""
    accepted: Subset
    """The subset so far; with replacement an ingredient may be in it more than once."""
    best: float | None
    """Its score; None: not known yet (a start of several ingredients)."""
    position: int
    """The next place in the order, counted on through all passes."""
    start: Subset = ()
    """What it began with, where that was said."""
    start_score: float | None = None
    tie: Tie = "ge"
    min_delta: float = 0.0
    replacement: bool = False
    passes: int = 1
    hashes: tuple[str, ...] | None = None
    """Each ingredient's content hash."""
    tried: Subset = ()
    """Ingredients not taken since the subset last grew."""
    steps: tuple[Step, ...] = ()
    rounds: int = 0
    """Calls of `advance`."""
    evaluations: int = 0
    """Scores given to it, those thrown away included."""

    @property
    def subset(self) -> Subset:
        """The subset so far; at the end, the result."""
        return self.accepted

    @property
    def failed(self) -> Subset:
        """Ingredients of which a score was no finite number."""
        return tuple(step.ingredient for step in self.steps if step.outcome == "failed")

    @property
    def vanished(self) -> Subset:
        """Ingredients that were lost on the way."""
        return tuple(step.ingredient for step in self.steps if step.outcome == "vanished")


def as_json(state: Greedy) -> dict[str, Any]:
    """The state as plain data without a NaN; `from_json` gives it back."""
    return asdict(state)


def from_json(data: Mapping[str, Any]) -> Greedy:
    """The state that `as_json` wrote, lists made tuples again."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    fields["steps"] = tuple(
        Step(**{**step, "candidate": tuple(step["candidate"])}) for step in data["steps"]
    )
    return Greedy(**fields)
