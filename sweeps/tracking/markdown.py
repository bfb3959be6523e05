"""The comparison as Markdown, for a description in MLflow."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.console import number_format
from sweeps.report import shift_table, significance_text
from sweeps.report.terminal_table import columns_of, interval, marks
from sweeps.results.comparison import Comparison, Row, split

WIDE = 10
"""More tasks than this get no columns."""


def described(comparison: Comparison) -> str:
    """The comparison: a summary in the first line, which is all that a folded page shows; then the
    table."""
    said = significance_text.verdict(comparison, "paired tests: report.html")
    lines = [headline(comparison), "", " ".join(map(escaped, said)), "", *table(comparison)]
    shifted = under_shift(comparison)
    chosen = number_format.selection(*comparison.selection)
    title = comparison.ranked_by.title.capitalize()
    count = sum(row.trials for row in comparison.rows)
    lines += [
        "",
        f"{title} in %, 95 % interval; {chosen}; {number_format.count(count, 'trial')}.",
    ]
    lines += [f"{escaped(mark)} {escaped(note)}" for note, mark in marks(comparison).items()]
    lines += ["", *shifted] if shifted else []
    if comparison.created:
        lines.append(number_format.moment(comparison.created) + ".")
    return "\n".join(lines)


def headline(comparison: Comparison) -> str:
    """Sweep name and mean scores, best first, the winner in bold; references in brackets."""
    shown = ", ".join(scored(comparison, row) for row in comparison.methods)
    apart = ", ".join(scored(comparison, row) for row in comparison.references)
    tail = f" (references: {apart})" if apart else ""
    what = f"{split(comparison)} {comparison.ranked_by.title}"
    return f"**{escaped(comparison.sweep)}**, {what} in %: {shown}{tail}"


def scored(comparison: Comparison, row: Row) -> str:
    """A method and its score: `ties 62.7`; the best in bold."""
    text = f"{escaped(row.method)} {number_format.percent(comparison.score(row))}"
    return f"**{text}**" if row is comparison.best else text


def table(comparison: Comparison) -> list[str]:
    """The rows, best first, and the references below them.

    Intervals and times hold no-break spaces: a narrow column breaks them at no other place.
    """
    tasks = comparison.tasks if len(comparison.tasks) <= WIDE else ()
    tested = any(row.test for row in comparison.rows)
    head = ["method", "parameters", comparison.select_on]
    kinds = columns_of(comparison) if tested else {}
    head += [f"{comparison.report_on}{kind}" for kind in kinds]
    beside = comparison.beside
    head += [] if beside is None else [beside.title]
    head += [f"{task} (unseen)" if task in comparison.unseen else task for task in tasks]
    head += ["models held", "passes", "an input", "trials"]
    marked = marks(comparison)
    lines = [line(head), "|---|---" + "|--:" * (len(head) - 2) + "|"]
    for row in comparison.ranked:
        metrics = row.test if tested else row.val
        name = " ".join(
            [
                f"{row.method} (reference)" if row.reference else row.method,
                *(marked[note] for note in row.notes),
            ]
        )
        cells = [escaped(name), words(row) or number_format.MISSING]
        cells.append(number_format.percent(row.val.get(comparison.headline)))
        cells += [interval(row, metric).replace(", ", ",\u00a0") for metric in kinds.values()]
        if beside is not None:
            cells.append(number_format.percent(comparison.value_beside(row)))
        cells += [number_format.percent(metrics.get(comparison.value(task))) for task in tasks]
        cells += [number_format.amount(row.cost.get(each)) for each in ("models", "passes")]
        cells.append(number_format.brief(row.cost.get("input_s")).replace(" ", "\u00a0"))
        cells.append(str(row.trials) if row.trials else number_format.MISSING)
        best = row is comparison.best
        lines.append(line([f"**{cells[0]}**", *cells[1:]] if best else cells))
    return lines


def under_shift(comparison: Comparison) -> list[str]:
    """Table of shift sets, best first; empty if there is none."""
    found = shift_table.table(comparison)
    if found is None:
        return []
    head = ["method", comparison.report_on, *found["columns"]]
    lines = [
        shift_table.sentence(comparison),
        "",
        line(head),
        "|---" + "|--:" * (len(head) - 1) + "|",
    ]
    for each in found["lines"]:
        cells = [f"{cell['text']} ({cell['gain']})" if cell["gain"] else cell["text"]
                 for cell in each["cells"]]  # fmt: skip
        lines.append(line([escaped(each["row"].method), each["report"], *cells]))
    return lines


def words(row: Row) -> str:
    """Parameters as code: `density=0.2 scale=1.0`."""
    return " ".join(f"`{word}`" for word in number_format.params_words(row.params, limit=20))


def line(cells: Sequence[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def escaped(text: str) -> str:
    """Escape underscores and stars of names.

    >>> escaped("wise_ft *")
    'wise\\\\_ft \\\\*'
    """
    return text.replace("_", "\\_").replace("*", "\\*")
