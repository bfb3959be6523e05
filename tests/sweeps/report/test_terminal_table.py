"""The terminal's table: remarks on a row are footnotes."""

from dataclasses import replace

import numpy as np
from rich.console import Console

from sweeps.console.escape import Screen
from sweeps.report.terminal_table import fitting, render
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
    names = [line.split("  ")[0 if line[0] == "▸" else 1] for line in lines[2:6]]
    assert names == ["dawin ** *", "dawe *", "▸ adamerging *", "ties"]
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


def test_names_are_whole_and_columns_that_do_not_fit_are_left_out():
    def written(row: Row) -> str:
        return "75.2 [74.4, 76.0]"

    rows = [row("concrete_adamerging_of_layers", 0.5), row("ties", 0.6)]
    scores = dict.fromkeys(("val", "test\n[95 % CI]", "exact match"), written)
    columns = {**scores, "held": lambda row: "1", "passes": lambda row: "1"}
    kept = {room: list(fitting(columns, rows, room)) for room in (200, 65, 57, 40, 10)}
    assert kept == {
        200: list(columns),
        65: ["val", "test\n[95 % CI]", "exact match", "held"],
        57: ["val", "test\n[95 % CI]", "exact match"],
        40: ["val", "test\n[95 % CI]"],
        10: ["val", "test\n[95 % CI]"],
    }
    lines = shown([replace(each, val={**each.val, "exact/mean": 0.5}) for each in rows], 50)
    assert "concrete_adamerging_of_layers" in lines


def test_references_are_apart_and_the_verdict_fits_eighty_columns():
    cost = {"models": 9, "passes": 9, "input_s": 0.0023}
    long = {"average": "probabilities", "weights": {"counts": 0.76791, "digits": 0.12345}}
    rows = [
        Row("pretrained", "reference"),
        Row("ensemble", "logits", params=long, asked=False, cost=cost),
        Row("ties", "static", params={"density": 0.2, "scale": 1.0}),
        Row("task_arithmetic", "static", params={"scale": 0.3}, cost={"models": 1, "passes": 1}),
    ]
    hits = {row.method: {"a": np.arange(1000) < 600 + 60 * i} for i, row in enumerate(rows)}
    hits["ties"] = {"a": np.arange(1000) < 770}
    made = compare(Header("s", "", "val"), [replace(r, val={"acc/mean": 0.5}) for r in rows], hits)
    console = Screen(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render(made, console)
    text = console.export_text()
    assert "\\x" not in text
    assert "%" in text
    assert max(map(len, text.splitlines())) <= 80
    firsts = [line.strip(" ▸").split(" ")[0] for line in text.splitlines()]
    order = ["task_arithmetic", "ties", "references", "ensemble", "pretrained"]
    assert [word for word in firsts if word in order][:5] == order
    head = next(line for line in text.splitlines() if line.startswith("method"))
    assert head.split()[-3:] == ["p", "held", "passes"]
    assert next(line for line in text.splitlines() if "ensemble" in line).split()[-2:] == ["9", "9"]
    at = text.splitlines().index(next(line for line in text.splitlines() if "ensemble" in line))
    below = [line.rstrip() for line in text.splitlines()[at + 1 : at + 4]]
    assert below[:2] == ["    average=probabilities", "    weights={counts: 0.7679, di…"]
    assert "task_arithmetic (scale=0.3) is best: 78.0 %" in text
    assert "(paired tests: see" in text
