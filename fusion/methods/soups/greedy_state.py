"""Where a greedy selection stands: plain data, from which it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Tie: TypeAlias = Literal["ge", "gt"]
Subset: TypeAlias = tuple[int, ...]
Outcome: TypeAlias = Literal["start", "accepted", "rejected", "failed", "duplicate"]


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
    twin: int | None = None
    """Of a duplicate: which ingredient of the subset it is a copy of, itself perhaps."""

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
