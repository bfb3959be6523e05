"""Print the comparison as a table in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from actors.artifacts.recipe import REFERENCES
from sweeps.console import number_format
from sweeps.report import shift_table
from sweeps.results.comparison import Comparison, Row

NARROW = 100
"""Columns of a terminal below which the cost is left to the report."""

WIDER = 22
"""Columns that a second mean with its interval takes."""


def render(comparison: Comparison, console: Console) -> None:
    """Print the comparison; with one column for each task if the terminal is wide enough."""
    console.print(table(comparison, console.width))
    if (shifted := under_shift(comparison)) is not None:
        console.print(shifted)
    for note, mark in marks(comparison).items():
        console.print(f"{mark} {escape(note)}", style="dim", highlight=False)
    failed = len(comparison.failed)
    if failed:
        named = ", ".join(sorted({str(trial["method"]) for trial in comparison.failed}))
        console.print(
            f"{number_format.count(failed, 'trial')} failed: {escape(named)}", style="red"
        )
    if comparison.optimistic:
        console.print("selected on the report split: optimistic", style="yellow")


def under_shift(comparison: Comparison) -> Table | None:
    """Table of accuracies on shift sets; None if there are none."""
    found = shift_table.table(comparison)
    if found is None:
        return None
    out = Table(
        title="under shift: accuracy, % (points above pretrained)",
        title_justify="left", box=None, pad_edge=False, header_style="bold",
    )  # fmt: skip
    out.add_column("method", no_wrap=True)
    for name in (comparison.report_on, *found["columns"]):
        adapted = " (adapted to)" if name == found["adapted"] else ""
        out.add_column(escape(f"{name}{adapted}"), justify="right")
    for line in found["lines"]:
        cells = [f"{cell['text']} {cell['gain']}".strip() for cell in line["cells"]]
        out.add_row(*map(escape, (f"  {line['row'].method}", line["report"], *cells)))
    return out


def marks(comparison: Comparison) -> dict[str, str]:
    """Note -> the mark of its footnote.

    >>> rows = [Row("a", "x", notes=("seen",)), Row("b", "x", notes=("told", "seen"))]
    >>> marks(Comparison("s", "", "val", tuple(rows)))
    {'seen': '*', 'told': '**'}
    """
    notes = dict.fromkeys(note for row in comparison.rows for note in row.notes)
    return {note: "*" * (i + 1) if i < 3 else f"*{i + 1}" for i, note in enumerate(notes)}


def table(comparison: Comparison, width: int) -> Table:
    """The rich table for a terminal of `width` columns."""
    tested = any(row.test for row in comparison.rows)
    narrow = width < NARROW + (WIDER if comparison.unseen else 0)
    marked = marks(comparison)
    names = [" ".join([row.method, *(marked[n] for n in row.notes)]) for row in comparison.rows]
    words = [parameters(row, "\n" if narrow else " ") for row in comparison.rows]
    tasks = () if width < fixed(names, words) + task_width(comparison) else comparison.tasks
    out = Table(
        title=f"{escape(comparison.sweep)}: {comparison.ranked_by.title}, %",
        caption=caption(comparison, tested),
        caption_justify="left",
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    kinds = columns_of(comparison)
    out.add_column("method", no_wrap=True)
    out.add_column("selected parameters", overflow="fold")
    out.add_column(escape(comparison.select_on), justify="right", no_wrap=True)
    if tested:
        for kind, metric in kinds.items():
            spans = " [95 % CI]" if with_interval(metric, width) else ""
            name = f"{comparison.report_on}{kind}"
            name = f"{name}\n{spans.strip()}" if kind and spans else f"{name}{spans}"
            out.add_column(escape(name), justify="right", no_wrap=True)
    beside = comparison.beside
    if beside is not None:
        out.add_column(escape(beside.title), justify="right", no_wrap=True)
    for task in tasks:
        shown = f"{task} (unseen)" if task in comparison.unseen else task
        out.add_column(escape(shown), justify="right", no_wrap=True)
    for name in ("trials",) if narrow else ("trials", "a trial", "peak"):
        out.add_column(name, justify="right", no_wrap=True)
    best = comparison.best
    for row, name, text in zip(comparison.rows, names, words, strict=True):
        metrics = row.test if tested else row.val
        cells = [f"{'▸ ' if row is best else '  '}{name}", text]
        cells.append(number_format.percent(row.val.get(comparison.headline)))
        if tested:
            cells += [
                interval(row, metric)
                if with_interval(metric, width)
                else number_format.percent(row.test.get(metric))
                for metric in kinds.values()
            ]
        if beside is not None:
            cells.append(number_format.percent(comparison.value_beside(row)))
        cells += [number_format.percent(metrics.get(comparison.value(task))) for task in tasks]
        cells.append(str(row.trials) if row.trials else number_format.MISSING)
        if not narrow:
            cells.append(number_format.seconds(row.cost.get("trial_s")))
            cells.append(number_format.size(row.cost.get("peak_bytes")))
        style = "bold green" if row is best else "dim" if row.method in REFERENCES else None
        out.add_row(*map(escape, cells), style=style)
    return out


def columns_of(comparison: Comparison) -> dict[str, str]:
    """Suffix of a mean's column -> its metric: one mean, or those of seen and unseen tasks.

    >>> columns_of(Comparison("s", "", "val", (), tasks=("a", "b"), unseen=("b",)))
    {' seen': 'acc/seen', ' unseen': 'acc/unseen'}
    """
    kinds = (" seen", " unseen") if comparison.unseen else ("",)
    return dict(zip(kinds, comparison.means, strict=True))


def with_interval(metric: str, width: int) -> bool:
    """Whether a mean's column shows intervals: the second mean does not in a narrow terminal."""
    return not metric.endswith("/unseen") or width >= NARROW


def parameters(row: Row, separator: str) -> str:
    """The selected parameters, or why there are none."""
    if row.trials and not row.val:
        return "no successful trial"
    return separator.join(number_format.params_words(row.params, limit=20)) or number_format.MISSING


def fixed(names: Sequence[str], words: Sequence[str]) -> int:
    """Width of everything but the task columns."""
    return 62 + max(map(len, names), default=0) + min(44, max(map(len, words), default=0))


def task_width(comparison: Comparison) -> int:
    """Width of one column for each task."""
    own = sum(max(len(task), 5) + 2 for task in comparison.tasks)
    own += len(comparison.beside.title) + 2 if comparison.beside is not None else 0
    return own + (WIDER + 9 * len(comparison.unseen) if comparison.unseen else 0)


def interval(row: Row, metric: str) -> str:
    """A mean with its interval: `75.2 [74.4, 76.0]`."""
    mean, ci95 = row.test.get(metric), row.test_ci95.get(metric)
    if mean is None or ci95 is None:
        return number_format.percent(mean)
    low, high = (number_format.percent(end) for end in ci95)
    return f"{number_format.percent(mean)} [{low}, {high}]"


def caption(comparison: Comparison, tested: bool) -> str:
    """Caption: the splits for selection and report."""
    if tested:
        return escape(
            f"▸ best; selected on {comparison.select_on} by {comparison.metric}, "
            f"reported on {comparison.report_on}"
        )
    return escape(f"▸ best so far; nothing is reported on {comparison.report_on} yet")
