"""The terminal's table: remarks on a row are footnotes."""

from rich.console import Console

from sweeps.report.terminal_table import render
from sweeps.results.comparison import Header, Row, compare

SEEN = "adapted to the unlabelled test images it is reported on"
ORACLE = "oracle: reads the labels it is measured by"


def shown(rows: list[Row], width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render(compare(Header("s", "", "val"), rows, {}), console)
    return console.export_text()


def row(method: str, value: float, *notes: str) -> Row:
    return Row(method, "x", val={"acc/mean": value, "acc/a": value}, trials=1, notes=notes)


ROWS = [row("ties", 0.5), row("adamerging", 0.6, SEEN), row("dawe", 0.7, SEEN),
        row("dawin", 0.8, ORACLE, SEEN)]  # fmt: skip


def test_notes_are_footnotes_and_an_oracle_is_never_best():
    lines = shown(ROWS, 120).splitlines()
    names = {line.split("  ")[0 if line[0] == "▸" else 1] for line in lines[2:6]}
    assert names == {"ties", "adamerging *", "▸ dawe *", "dawin ** *"}
    assert [line.strip() for line in lines if line.startswith("*")] == [f"* {SEEN}", f"** {ORACLE}"]


def test_no_notes_no_footnotes():
    assert "*" not in shown(ROWS[:1], 120)


def test_models_that_write_have_a_column_for_what_they_write():
    written = Row("ties", "x", val={"acc/mean": 0.5, "acc/a": 0.5, "exact/mean": 0.125}, trials=1)
    head, line = shown([written, ROWS[0]], 120).splitlines()[1:3]
    assert "exact match" in head
    assert "12.5" in line
    assert "exact match" not in shown(ROWS, 120)


def test_footnotes_fit_the_width():
    for width in (60, 80, 100, 200):
        assert max(map(len, shown(ROWS, width).splitlines())) <= width
