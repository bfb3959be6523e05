"""Print the comparison as a table in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sweeps.console import number_format
from sweeps.report import shift_table, significance_text
from sweeps.report.significance_text import oriented
from sweeps.results.comparison import Comparison, Row

NARROW = 100
"""Columns of a terminal below which trials and the time of an input are left to the report, and
parameters are below the method's name."""

BELOW = 26
"""Characters of parameters in one line below a method's name; longer ones have a line each."""

Write: TypeAlias = Callable[[Row], str]
"""The text of a row in one column."""

WIDER = 22
"""Columns that a second mean with its interval takes."""


def render(comparison: Comparison, console: Console) -> None:
    """Print the comparison; with one column for each task if the terminal is wide enough."""
    console.print(table(comparison, console.width))
    for sentence in significance_text.verdict(comparison, "paired tests: see the report"):
        # A space that must not break is no printable character for a `Screen`.
        console.print(escape(sentence.replace("\xa0", " ")), highlight=False)
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
    rows = comparison.ranked
    names = [" ".join([row.method, *(marked[n] for n in row.notes)]) for row in rows]
    words = [parameters(row, " ") for row in rows]
    tasks = () if width < fixed(names, words) + task_width(comparison) else comparison.tasks
    scores = {**score_columns(comparison, tested, width), **task_columns(comparison, tasks)}
    shown = {**scores, **test_column(comparison), **cost_columns(narrow)}
    wide = 2 + max(map(len, names), default=0)
    if narrow:
        shown = fitting(shown, rows, width - wide)
    out = Table(
        title=f"{escape(comparison.sweep)}: {comparison.ranked_by.title}, %",
        caption=caption(comparison, tested, "held" in shown),
        caption_justify="left",
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    out.add_column("method", no_wrap=not narrow, overflow="fold", min_width=wide)
    if not narrow:
        out.add_column("selected parameters", overflow="fold")
    for title in shown:
        out.add_column(escape(title), justify="right", no_wrap=True)
    best = comparison.best
    for row, name, text in zip(rows, names, words, strict=True):
        if comparison.references and row is comparison.references[0]:
            out.add_row("references", style="dim italic")
        cell = f"{'▸ ' if row is best else '  '}{name}"
        cells = ["\n".join([cell, *below(row, text)])] if narrow else [cell, text]
        cells += [written(row) for written in shown.values()]
        style = "bold green" if row is best else "dim" if row.reference else None
        out.add_row(*map(escape, cells), style=style)
    return out


def fitting(shown: Mapping[str, Write], rows: Sequence[Row], room: int) -> dict[str, Write]:
    """Columns that fit beside the methods' names: costs are left out first, then the last scores.

    The first two, of the splits of selection and report, are never left out.
    """
    kept = dict(shown)
    for title in ("passes", "held", *reversed(list(shown)[2:])):
        widths = [
            2 + max(map(len, (*name.splitlines(), *(write(row) for row in rows))))
            for name, write in kept.items()
        ]
        if sum(widths) <= room:
            break
        kept.pop(title, None)
    return kept


def score_columns(comparison: Comparison, tested: bool, width: int) -> dict[str, Write]:
    """Title -> text of a row: means on the two splits, and the metric beside them."""
    found: dict[str, Write] = {
        comparison.select_on: lambda row: number_format.percent(row.val.get(comparison.headline))
    }
    for kind, metric in columns_of(comparison).items() if tested else ():
        name = f"{comparison.report_on}{kind}"
        if with_interval(metric, width):
            name += "\n[95 % CI]" if kind else " [95 % CI]"
            found[name] = partial(interval, metric=metric)
        else:
            found[name] = partial(test_score, metric=metric)
    if comparison.beside is not None:
        found[comparison.beside.title] = lambda row: number_format.percent(
            comparison.value_beside(row)
        )
    return found


def test_score(row: Row, metric: str) -> str:
    """A score on the report split."""
    return number_format.percent(row.test.get(metric))


def task_columns(comparison: Comparison, tasks: Sequence[str]) -> dict[str, Write]:
    """Title -> text of a row: the score on each task."""
    return {
        f"{task} (unseen)" if task in comparison.unseen else task: partial(
            first_score, metric=comparison.value(task)
        )
        for task in tasks
    }


def first_score(row: Row, metric: str) -> str:
    """A score on the report split, or on the select split while there is no other."""
    return number_format.percent((row.test or row.val).get(metric))


def test_column(comparison: Comparison) -> dict[str, Write]:
    """Title -> text of a row: adjusted p against the winner, if anything was tested."""
    tests, best = oriented(comparison), comparison.best
    if best is None or not tests:
        return {}

    def written(row: Row) -> str:
        pair = tests.get((best.method, row.method))
        return number_format.probability(pair.p_holm) if pair else ""

    return {"p": written}


def cost_columns(narrow: bool) -> dict[str, Write]:
    """Title -> text of a row: what its model takes."""
    found: dict[str, Write] = {
        "held": lambda row: number_format.amount(row.cost.get("models")),
        "passes": lambda row: number_format.amount(row.cost.get("passes")),
    }
    if narrow:
        return found
    return found | {
        "an input": lambda row: number_format.brief(row.cost.get("input_s")),
        "trials": lambda row: str(row.trials) if row.trials else number_format.MISSING,
    }


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


def below(row: Row, words: str) -> list[str]:
    """Lines below a method's name: its parameters, or why there are none.

    >>> below(Row("a", "x", {"density": 0.2, "scale": 1.0}), "density=0.2 scale=1.0")
    ['    density=0.2 scale=1.0']
    """
    if words == number_format.MISSING:
        return []
    lines = [words] if len(words) <= BELOW else parameters(row, "\n").splitlines()
    return [f"    {line}" for line in lines]


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


def caption(comparison: Comparison, tested: bool, costs: bool) -> str:
    """Caption: the splits for selection and report, and the columns of costs if they are there."""
    cost = "; held: models in memory; passes: forward passes an input" if costs else ""
    if tested:
        p = "; p: against ▸, adjusted by Holm" if comparison.pairs else ""
        return escape(f"▸ best; {number_format.chosen(*comparison.selection)}{p}{cost}")
    return escape(f"▸ best so far; nothing is reported on {comparison.report_on} yet{cost}")
