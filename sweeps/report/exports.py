"""The comparison for other programs: CSV, a LaTeX table, and the Parquet file that pandas reads."""

from __future__ import annotations

import csv
import io
from base64 import b64encode
from collections.abc import Sequence

import pyarrow.parquet as pq

from sweeps.console import number_format
from sweeps.results.comparison import Comparison, Row
from sweeps.results.comparison_file import as_table, document

COSTS = ("models", "passes", "extra_parameters", "mask_bits", "merge_s", "input_s", "learn_s")

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
"""Character -> how LaTeX writes it."""


def csv_text(comparison: Comparison) -> str:
    """All rows, the best first: scores as fractions, with intervals, and costs."""
    names = [*comparison.means, *map(comparison.value, task_columns(comparison))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = [f"{name} {end}" for name in names for end in ("", "low", "high")]
    writer.writerow(["method", "role", "parameters", *map(str.strip, ends), "normalised", *COSTS])
    for row in comparison.ranked:
        cells: list[object] = []
        for name in names:
            low, high = row.test_ci95.get(name, (None, None))
            cells += [metric(row, name), low, high]
        cells += [comparison.normalised(row), *(row.cost.get(cost) for cost in COSTS)]
        role = "winner" if row is comparison.best else "reference" if row.reference else "method"
        params = number_format.value_text(dict(row.params)) if row.params else ""
        writer.writerow([guarded(row.method), role, guarded(params), *cells])
    return out.getvalue()


def guarded(text: str) -> str:
    """Text that a spreadsheet takes for no formula.

    >>> guarded("=1+1"), guarded("ties")
    ("'=1+1", 'ties')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def latex(comparison: Comparison) -> str:
    """A booktabs table in percent: mean, normalised mean and each task; the best method of each
    column in bold, references below."""
    tasks = task_columns(comparison)
    names = [*comparison.means, *map(comparison.value, tasks)]
    best = {name: best_of(comparison, [metric(r, name) for r in comparison.methods])
            for name in names}  # fmt: skip
    best_part = best_of(comparison, [comparison.normalised(row) for row in comparison.methods])
    means = ["seen", "unseen"] if comparison.unseen else ["mean"]
    head = [*means, "normalised", *tasks]
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * len(head)}}}",
        r"\toprule",
        " & ".join(["method", *map(escaped, head)]) + r" \\",
    ]
    for rows in (comparison.methods, comparison.references):
        lines += [r"\midrule"] if rows else []
        for row in rows:
            cells = [number(metric(row, name), best[name], row) for name in names]
            cells.insert(len(means), number(comparison.normalised(row), best_part, row))
            lines.append(" & ".join([escaped(row.method), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def task_columns(comparison: Comparison) -> tuple[str, ...]:
    """Tasks with a column of their own; a single task is the mean."""
    return (*comparison.seen, *comparison.unseen) if len(comparison.tasks) > 1 else ()


def metric(row: Row, name: str) -> float | None:
    """A score on the split that is shown."""
    return (row.test or row.val).get(name)


def best_of(comparison: Comparison, values: Sequence[float | None]) -> float | None:
    """The best value; None if there is none."""
    pick = max if comparison.ranked_by.larger_is_better else min
    return pick((value for value in values if value is not None), default=None)


def number(value: float | None, best: float | None, row: Row) -> str:
    """A cell, in percent."""
    if value is None:
        return "--"
    text = number_format.percent(value)
    return rf"\textbf{{{text}}}" if value == best and not row.reference else text


def escaped(text: str) -> str:
    """Escape what LaTeX would read as commands.

    >>> escaped("wise_ft 50%")
    'wise\\\\_ft 50\\\\%'
    """
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def parquet(comparison: Comparison) -> str:
    """`comparison.parquet` in base64."""
    out = io.BytesIO()
    pq.write_table(as_table(document(comparison)), out)
    return b64encode(out.getvalue()).decode()
