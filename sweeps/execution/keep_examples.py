"""Keep samples on which the winner and the runner-up differ, for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from actors.data.protocol import Inputs
from actors.data.task import Task
from actors.data.task_rows import Rows, TaskData
from sweeps.execution.sweep_run import SweepRun
from sweeps.report.disagreements import runner_up
from sweeps.results.comparison import Comparison
from sweeps.results.correctness_file import read_correct, read_predicted
from sweeps.results.examples import Example, Examples, write

EACH = 6
"""Most samples of a task and side."""

MOST_CHARACTERS = 600_000
"""Most characters of all samples together. Tasks after the one that exceeds it get no samples."""


def keep_examples(sweep: SweepRun, comparison: Comparison) -> None:
    """Write class names, and samples that only the winner or only the runner-up has right.

    Raises:
        InputError: a file cannot be read or written.
    """
    best, other = comparison.best, runner_up(comparison)
    if best is None or not comparison.ranked_by.per_sample:
        return
    correct, predicted = read_correct(sweep.folder.correct), read_predicted(sweep.folder.correct)
    tasks, found, left = sweep.prepared.tasks, {}, MOST_CHARACTERS
    pair = (best.method, other.method if other is not None else "")
    for name in tasks:
        if any(name not in correct.get(row, {}) for row in pair) or name not in sweep.data:
            continue
        right = [np.asarray(correct[row][name]) for row in pair]
        answers = [predicted.get(row, {}).get(name) for row in pair]
        inputs, data = sweep.prepared.inputs, sweep.data[name]
        made = list(samples(inputs, data, right[0], right[1], answers))
        left -= sum(len(each.shown) for each in made)
        if left < 0:
            break
        found[name] = made
    classes = {name: class_names(task) for name, task in tasks.items()}
    write(Examples(*pair, classes, found), sweep.folder.correct)


def class_names(task: Task) -> list[str]:
    """Names of a task's classes, shortened."""
    return [str(name)[:60] for name in task.classnames]


def samples(
    inputs: Inputs,
    data: TaskData,
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    answers: list[NDArray[np.int32] | None],
) -> Iterator[Example]:
    """Samples of a task that only one of two rows has right, spread over all such.

    Args:
        inputs: preprocessing of the rows.
        data: of the task.
        first: [N], whether the first row has each sample right.
        second: the same of the second row.
        answers: classes [N] that each row chose; None: not known.
    """
    rows = data.rows["report"]
    prepared = inputs.open(rows.file)
    sides: Mapping[Literal["first", "second"], NDArray[np.bool_]] = {
        "first": first & ~second,
        "second": second & ~first,
    }
    for side, which in sides.items():
        (at,) = np.nonzero(which)
        chosen = at[np.linspace(0, len(at) - 1, min(EACH, len(at))).astype(int)]
        places = torch.from_numpy(places_of(rows, chosen))
        shown = inputs.preview(prepared, places) if len(chosen) else []
        for index, place, text in zip(chosen.tolist(), places.tolist(), shown, strict=True):
            known = [int(each[index]) for each in answers if each is not None]
            label = int(prepared.labels[place])
            yield Example(index, side, label, known if len(known) == len(answers) else [], text)


def places_of(rows: Rows, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where rows of a role are in their file."""
    return chosen if rows.indices is None else rows.indices[chosen]
