"""Where the winner differs from each task's own expert and from the runner-up, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sweeps.results.comparison import Comparison, Row
from sweeps.results.correctness_file import Correct

EXAMPLES = 25
"""Most sample numbers listed for a task and side."""


def tables(comparison: Comparison, correct: Mapping[str, Correct]) -> list[dict[str, Any]]:
    """One table for each row that the winner is compared with; none without kept samples, or where
    the metric does not judge single samples.

    Args:
        comparison: the comparison.
        correct: row -> task -> bool [N], whether each sample was classified rightly.
    """
    best = comparison.best
    if best is None or best.method not in correct or not comparison.ranked_by.per_sample:
        return []
    found = []
    for other in others(comparison, best):
        lines = [
            line(task, correct[best.method][task], correct[other.method][task])
            for task in comparison.tasks
            if other.method in correct
            and task in correct[best.method]
            and task in correct[other.method]
        ]
        if lines:
            title = "each task's own expert" if other.method == "experts" else other.method
            found.append({"first": best.method, "second": title, "lines": lines})
    return found


def others(comparison: Comparison, best: Row) -> list[Row]:
    """The experts, and the runner-up: the best other method."""
    rivals = [row for row in comparison.methods if row is not best and row.test]
    return [row for row in (comparison.row("experts"), *rivals[:1]) if row is not None]


def line(task: str, first: Any, second: Any) -> dict[str, Any]:
    """Counts of a task's samples, and the numbers of those that only one has right."""
    only_first, only_second = first & ~second, second & ~first
    return {
        "task": task,
        "n": len(first),
        "both": int((first & second).sum()),
        "only_first": int(only_first.sum()),
        "only_second": int(only_second.sum()),
        "neither": int((~first & ~second).sum()),
        "first_examples": examples(only_first),
        "second_examples": examples(only_second),
    }


def examples(which: Any) -> str:
    """Numbers of the marked samples, in the order of the split: `3, 17, 21 …`."""
    (at,) = np.nonzero(which)
    shown = ", ".join(map(str, at[:EXAMPLES].tolist()))
    return f"{shown} …" if len(at) > EXAMPLES else shown
