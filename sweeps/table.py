"""The comparison in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sweeps import wording
from sweeps.compare import REFERENCES, Comparison, Row

NARROW = 100
"""Columns of a terminal below which the cost is left to the report."""


def render(comparison: Comparison, console: Console) -> None:
    """Print the comparison, with a column a task where the terminal is wide enough."""
    console.print(table(comparison, console.width))
    for note, mark in marks(comparison).items():
        console.print(f"{mark} {escape(note)}", style="dim", highlight=False)
    failed = len(comparison.failed)
    if failed:
        named = ", ".join(sorted({str(trial["method"]) for trial in comparison.failed}))
        console.print(f"{wording.count(failed, 'trial')} failed: {escape(named)}", style="red")
    if comparison.optimistic:
        console.print("selected on the report split: optimistic", style="yellow")


def marks(comparison: Comparison) -> dict[str, str]:
    """Note -> the mark of its footnote.

    >>> rows = [Row("a", "x", notes=("seen",)), Row("b", "x", notes=("told", "seen"))]
    >>> marks(Comparison("s", "", "val", tuple(rows)))
    {'seen': '*', 'told': '**'}
    """
    notes = dict.fromkeys(note for row in comparison.rows for note in row.notes)
    return {note: "*" * (i + 1) if i < 3 else f"*{i + 1}" for i, note in enumerate(notes)}


def table(comparison: Comparison, width: int) -> Table:
    """The rich table, for a terminal of `width` columns."""
    tested = any(row.test for row in comparison.rows)
    narrow = width < NARROW
    marked = marks(comparison)
    names = [" ".join([row.method, *(marked[n] for n in row.notes)]) for row in comparison.rows]
    words = [parameters(row, "\n" if narrow else " ") for row in comparison.rows]
    tasks = () if width < fixed(names, words) + task_width(comparison) else comparison.tasks
    out = Table(
        title=f"{escape(comparison.sweep)}: accuracy, %",
        caption=caption(comparison, tested),
        caption_justify="left",
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    out.add_column("method", no_wrap=True)
    out.add_column("selected parameters", overflow="fold")
    out.add_column(escape(comparison.select_on), justify="right", no_wrap=True)
    if tested:
        out.add_column(f"{escape(comparison.report_on)} [95 % CI]", justify="right", no_wrap=True)
    for task in tasks:
        out.add_column(escape(task), justify="right", no_wrap=True)
    for name in ("trials",) if narrow else ("trials", "a trial", "peak"):
        out.add_column(name, justify="right", no_wrap=True)
    best = comparison.best
    for row, name, text in zip(comparison.rows, names, words, strict=True):
        metrics = row.test if tested else row.val
        cells = [f"{'▸ ' if row is best else '  '}{name}", text]
        cells.append(wording.percent(row.val.get("acc/mean")))
        if tested:
            cells.append(interval(row))
        cells += [wording.percent(metrics.get(f"acc/{task}")) for task in tasks]
        cells.append(str(row.trials) if row.trials else wording.MISSING)
        if not narrow:
            cells.append(wording.seconds(row.cost.get("trial_s")))
            cells.append(wording.size(row.cost.get("peak_bytes")))
        style = "bold green" if row is best else "dim" if row.method in REFERENCES else None
        out.add_row(*map(escape, cells), style=style)
    return out


def parameters(row: Row, separator: str) -> str:
    """The selected parameters; what is wrong where there are none for a reason."""
    if row.trials and not row.val:
        return "no successful trial"
    return separator.join(wording.params_words(row.params, limit=20)) or wording.MISSING


def fixed(names: Sequence[str], words: Sequence[str]) -> int:
    """Characters that everything but the tasks takes."""
    return 62 + max(map(len, names), default=0) + min(44, max(map(len, words), default=0))


def task_width(comparison: Comparison) -> int:
    """Characters that a column for each task takes."""
    return sum(max(len(task), 5) + 2 for task in comparison.tasks)


def interval(row: Row) -> str:
    """`75.2 [74.4, 76.0]`."""
    mean, ci95 = row.test.get("acc/mean"), row.test_ci95.get("acc/mean")
    if mean is None or ci95 is None:
        return wording.percent(mean)
    return f"{wording.percent(mean)} [{wording.percent(ci95[0])}, {wording.percent(ci95[1])}]"


def caption(comparison: Comparison, tested: bool) -> str:
    """What was selected on what."""
    if tested:
        return escape(
            f"▸ best; selected on {comparison.select_on} by {comparison.metric}, "
            f"reported on {comparison.report_on}"
        )
    return escape(f"▸ best so far; nothing is reported on {comparison.report_on} yet")
