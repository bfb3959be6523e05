"""The HTML page of an analysis: one file with its sentences, figures and tables."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps.analysis.core.finding import Finding, Line
from sweeps.analysis.figures import pictures
from sweeps.console import number_format
from sweeps.report.charts.static_figures import save
from sweeps.report.html import environment
from sweeps.results.ledger import write_text

TITLES = {
    "diagnosis": "What the numbers say of soups",
    "gram": "Angles",
    "plane": "Landscape",
    "angles": "Angle against advantage of averaging",
    "barriers": "Barriers",
    "grid": "Along one hyper-parameter",
    "gap": "Soup against ensemble",
    "robustness": "Robustness to shift",
}
"""Part -> its heading, in the order of the page."""

ROWS = 100
"""Of a table on the page."""


def write_page(
    findings: Sequence[Finding], folder: Path, facts: Mapping[str, Any]
) -> tuple[Path, list[Path]]:
    """Write `analysis.html`, and its figures as `plots/<name>.png`; other figures there are
    deleted.

    Args:
        findings: of all parts that are there.
        folder: the analysis's.
        facts: `sweep`, `select`, `report` (names of splits) and `linked` (whether there is a
            report to link to).
    """
    drawn: list[Path] = []
    parts = []
    order = list(TITLES)
    for finding in sorted(findings, key=lambda each: order.index(each.part)):
        shown = []
        for picture in pictures(finding):
            drawn.append(save(picture.figure, folder / "plots" / f"{picture.name}.png"))
            data = b64encode(drawn[-1].read_bytes()).decode()
            shown.append((picture.name, picture.title, data))
        parts.append(
            {
                "title": TITLES[finding.part],
                "finding": finding,
                "pictures": shown,
                "tables": [
                    table(name, finding.tables[name], f"{finding.part}-{name}.parquet")
                    for name in finding.shown
                    if finding.tables.get(name)
                ],
                "files": [
                    f"{finding.part}-{name}.parquet"
                    for name, rows in finding.tables.items()
                    if rows
                ],
            }
        )
    for old in (folder / "plots").glob("*.png"):
        if old not in drawn:
            old.unlink()
    page = folder / "analysis.html"
    template = environment().get_template("analysis.html.j2")
    write_text(page, template.render(facts, parts=parts, words=number_format))
    return page, drawn


def table(name: str, rows: Sequence[Line], file: str) -> dict[str, Any]:
    """A table as the page shows it: texts, and the first rows if there are many."""
    columns = list(rows[0])
    cells = [[text(row.get(column)) for column in columns] for row in rows[:ROWS]]
    heads = [column.replace("_", " ") for column in columns]
    return {"name": name, "columns": heads, "rows": cells, "total": len(rows), "file": file}


def text(cell: Any) -> str:
    """A cell: numbers with four digits, nothing as a dash.

    >>> text(0.123456), text(None), text("a")
    ('0.1235', '—', 'a')
    """
    if cell is None:
        return number_format.MISSING
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
