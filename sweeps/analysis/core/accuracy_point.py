"""What one classifier has right, clean and under each shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Accuracies: TypeAlias = Mapping[str, float]
"""Task -> accuracy."""


@dataclass(frozen=True)
class Spot:
    """One classifier of all tasks, and what it has right."""

    curve: str
    """What it is a point of."""
    model: str
    alpha: float | None
    clean: Accuracies
    shifts: Mapping[str, Accuracies]
    """Shift set -> accuracies of the tasks that it is of."""

    def mean(self, tasks: Sequence[str], sets: Sequence[str]) -> tuple[float, float] | None:
        """(reference, shift): means over sets of means over tasks; None: no set is of any task.

        For each set the reference is that of the same tasks, so that both are of the same classes.

        >>> spot = Spot("", "", None, {"a": 0.8, "b": 0.6}, {"s": {"a": 0.5}, "t": {"b": 0.3}})
        >>> spot.mean(["a", "b"], ["s"]), spot.mean(["a"], ["t"])
        ((0.8, 0.5), None)
        """
        pairs = []
        for name in sets:
            under = self.shifts.get(name, {})
            there = [task for task in tasks if task in under]
            if there:
                pairs.append([mean([each[task] for task in there]) for each in (self.clean, under)])
        if not pairs:
            return None
        reference, shift = (mean(column) for column in zip(*pairs, strict=True))
        return reference, shift


def mean(values: Sequence[float]) -> float:
    """The plain mean; of equal values exactly their value."""
    return values[0] if len(set(values)) == 1 else sum(values) / len(values)
