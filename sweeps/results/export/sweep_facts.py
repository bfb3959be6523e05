"""What the files of a sweep's folder say about a row: its tasks, splits and accuracies."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.data.task import Splits, Task, open_task
from actors.pool.pool import Pool
from fusion.errors import InputError
from sweeps.results import comparison_file
from sweeps.results.comparison import Row
from sweeps.results.folder import SweepFolder, read_identity
from sweeps.spec.sweep import SweepSpec, load


@dataclass(frozen=True)
class SweepFacts:
    """Of the sweep that a recipe is from; empty where its files are gone."""

    tasks: Mapping[str, Task] = field(default_factory=dict)
    splits: Splits = field(default_factory=Splits)
    select_spelled: bool = False
    unseen: Collection[str] = ()
    row: Row | None = None
    """Of the comparison."""
    command: str | None = None
    dtype: str = "float32"
    """What the model computed in."""

    def of(self, names: Collection[str]) -> SweepFacts:
        """The same with these tasks only."""
        return replace(self, tasks={name: t for name, t in self.tasks.items() if name in names})

    def test(self, name: str) -> float | None:
        """A value of the row on the report split."""
        return None if self.row is None else self.row.test.get(name)

    def interval(self, name: str) -> Any:
        """Its 95 % interval."""
        return None if self.row is None else self.row.test_ci95.get(name)


def facts_of(path: Path, method: str, pool: Pool) -> tuple[SweepFacts, str | None]:
    """What is known of the sweep that a recipe lies in, and what is lacking, in a line."""
    folder = SweepFolder(path.parent.parent)
    try:
        identity = read_identity(folder)
        spec = load(folder.path / identity.spec_file, importing=False)
    except (InputError, OSError):
        return SweepFacts(), f"no tasks, heads and accuracies: {folder.path} is no sweep's folder"
    row, command = row_of(folder, method)
    facts = SweepFacts(
        {},
        Splits(**spec.splits.model_dump()),
        spec.splits.select_spelled,
        spec.unseen,
        row,
        command,
        spec.placement.dtype,
    )
    found, lacking = opened_tasks(spec, pool)
    return replace(facts, tasks=found), lacking


def row_of(folder: SweepFolder, method: str) -> tuple[Row | None, str | None]:
    """The row of a method, and the command that made the sweep."""
    try:
        comparison = comparison_file.read(folder.path)
    except InputError:
        return None, None
    rows = [row for row in comparison.rows if row.method == method]
    return (rows[0] if rows else None), comparison.command


def opened_tasks(spec: SweepSpec, pool: Pool) -> tuple[dict[str, Task], str | None]:
    """The tasks of a sweep file whose data can be read, and why others cannot."""
    kind = pool.family.inputs(pool.base).kind
    given = pool.family.own_heads(pool.base, pool.experts)
    given |= {name: task.head for name, task in spec.tasks.items() if task.head is not None}
    found, lacking = {}, None
    for name, task in spec.tasks.items():
        try:
            found[name] = open_task(replace(task.source(name), head=given.get(name)), kind)
        except InputError as error:
            lacking = lacking or f"without {name}: {error}"
    return found, lacking
