"""Where the winner differs from each task's own expert and from the runner-up, sample by sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeps.report.charts.vega import Spec, cells
from sweeps.results.comparison import Comparison, Row
from sweeps.results.correctness_file import Correct
from sweeps.results.examples import Examples

EXAMPLES = 25
"""Most sample numbers listed for a task and side."""

CLASSES = 20
"""Most classes of a confusion matrix."""


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
    found = (comparison.row("experts"), runner_up(comparison))
    return [row for row in found if row is not None and row is not best]


def runner_up(comparison: Comparison) -> Row | None:
    """The best method beside the winner."""
    rivals = (row for row in comparison.methods if row is not comparison.best and row.test)
    return next(rivals, None)


def confusions(
    comparison: Comparison,
    predicted: Mapping[str, Mapping[str, NDArray[np.int32]]],
    classes: Mapping[str, Sequence[str]],
) -> list[tuple[str, str, Spec]]:
    """Task, sentence and chart of the classes that the winner and each task's expert chose.

    Args:
        comparison: the comparison.
        predicted: row -> task -> classes that were chosen [N].
        classes: task -> names; a class without one has its number.
    """
    best = comparison.best
    if best is None or best.method not in predicted or "experts" not in predicted:
        return []
    found = []
    for task in comparison.tasks:
        mine, theirs = predicted[best.method].get(task), predicted["experts"].get(task)
        if mine is None or theirs is None or len(mine) != len(theirs):
            continue
        names = [*classes.get(task, ())]
        names += [str(i) for i in range(len(names), int(max(mine.max(), theirs.max())) + 1)]
        apart = int((mine != theirs).sum())
        said = f"{apart:,} of {len(mine):,} samples get another class"
        shown = drawn_classes(mine, theirs)
        if len(shown) < len(set(mine.tolist()) | set(theirs.tolist())):
            said += f"; the {len(shown)} classes with most of them are drawn"
        found.append((task, said, confusion(f"{task}: {best.method}", mine, theirs, names, shown)))
    return found


def drawn_classes(mine: NDArray[np.int32], theirs: NDArray[np.int32]) -> list[int]:
    """At most `CLASSES` classes, those in most disagreements, in the order of their numbers."""
    apart = mine != theirs
    counts = Counter([*mine[apart].tolist(), *theirs[apart].tolist()])
    present = sorted(set(mine.tolist()) | set(theirs.tolist()))
    return sorted(sorted(present, key=lambda each: (-counts[each], each))[:CLASSES])


def confusion(
    label: str,
    mine: NDArray[np.int32],
    theirs: NDArray[np.int32],
    names: Sequence[str],
    shown: Sequence[int],
) -> Spec:
    """Numbers of samples by the class that the expert chose (down) and the winner (across)."""
    pairs = Counter(zip(theirs.tolist(), mine.tolist(), strict=True))
    titles = {each: names[each] if each >= 0 else "none" for each in shown}
    if len(set(titles.values())) < len(titles):  # names that were cut alike
        titles = {each: f"{name} ({each})" for each, name in titles.items()}
    values = [
        {"expert": titles[a], "winner": titles[b], "samples": pairs[a, b],
         "text": str(pairs[a, b])}
        for a in shown for b in shown if pairs[a, b]
    ]  # fmt: skip
    order = list(titles.values())
    made = cells(
        f"{label}: classes chosen, expert down, winner across", values,
        ("expert", "winner", "samples"), (order, order), "samples",
    )  # fmt: skip
    made["encoding"]["x"] |= {"title": "the winner says"}
    made["encoding"]["y"] |= {"title": "the expert says"}
    made["layer"][0]["encoding"]["color"]["scale"] |= {"type": "sqrt"}
    return made


def shown_examples(examples: Examples | None, comparison: Comparison) -> list[dict[str, Any]]:
    """Task, and its samples of the two sides with classes in words; of a comparison whose winner
    and runner-up are still those of the examples."""
    best, other = comparison.best, runner_up(comparison)
    if examples is None or best is None or other is None:
        return []
    if (examples.first, examples.second) != (best.method, other.method):
        return []
    found = []
    for task, samples in examples.samples.items():
        names = examples.classes.get(task, ())
        sides = [
            {
                "row": row,
                "samples": [
                    {
                        "index": each.index,
                        "shown": each.shown,
                        "pictured": each.pictured,
                        "label": named(names, each.label),
                        "answers": [named(names, answer) for answer in each.answers],
                    }
                    for each in samples
                    if each.right == side
                ],
            }
            for side, row in (("first", examples.first), ("second", examples.second))
        ]
        if samples:
            found.append({"task": task, "sides": [side for side in sides if side["samples"]]})
    return found


def named(names: Sequence[str], which: int) -> str:
    """Name of a class; its number where it has none."""
    return names[which] if 0 <= which < len(names) else "none" if which < 0 else str(which)


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
