"""CSV, LaTeX and Parquet of a comparison."""

import csv
import io
from base64 import b64decode

import pyarrow.parquet as pq
import pytest

from sweeps.report.exports import csv_text, latex, parquet
from sweeps.results.comparison import Comparison, Row


def row(method: str, kind: str, a: float, b: float, **more) -> Row:
    test = {"acc/mean": (a + b) / 2, "acc/a": a, "acc/b_2": b}
    return Row(method, kind, test=test, test_ci95={"acc/mean": (0.1, 0.9)}, **more)


MADE = Comparison(
    "s", "", "val",
    (
        row("pretrained", "reference", 0.2, 0.4),
        row("ties", "static", 0.4, 0.9, params={"scale": 1.0}, cost={"models": 1, "passes": 1}),
        row("wise_ft", "static", 0.5, 0.45),
        row("simple_average", "static", 0.3, 0.5, asked=False),
        row("experts", "reference", 0.8, 0.9),
    ),
    tasks=("a", "b_2"),
)  # fmt: skip


def test_csv_has_all_rows_best_first_with_roles_and_costs():
    lines = list(csv.DictReader(io.StringIO(csv_text(MADE))))
    assert [(line["method"], line["role"]) for line in lines] == [
        ("ties", "winner"), ("wise_ft", "method"), ("experts", "reference"),
        ("simple_average", "reference"), ("pretrained", "reference"),
    ]  # fmt: skip
    first = lines[0]
    assert float(first["acc/mean"]) == 0.65
    assert (first["acc/mean low"], first["acc/mean high"]) == ("0.1", "0.9")
    assert float(first["normalised"]) == pytest.approx((0.4 / 0.8 + 0.9 / 0.9) / 2)
    assert (first["models"], first["input_s"]) == ("1", "")


def test_latex_is_booktabs_with_the_best_method_of_each_column_bold():
    assert latex(MADE).splitlines() == [
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{lrrrr}",
        r"\toprule",
        r"method & mean & normalised & a & b\_2 \\",
        r"\midrule",
        r"ties & \textbf{65.0} & \textbf{75.0} & 40.0 & \textbf{90.0} \\",
        r"wise\_ft & 47.5 & 56.2 & \textbf{50.0} & 45.0 \\",
        r"\midrule",
        r"experts & 85.0 & 100.0 & 80.0 & 90.0 \\",
        r"simple\_average & 40.0 & 46.5 & 30.0 & 50.0 \\",
        r"pretrained & 30.0 & 34.7 & 20.0 & 40.0 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_parquet_is_the_file_that_is_written_beside_the_report():
    table = pq.read_table(io.BytesIO(b64decode(parquet(MADE))))
    assert table["method"].to_pylist() == [row.method for row in MADE.rows]
    assert table["asked"].to_pylist() == [True, True, True, False, True]
    assert table["test/acc/mean"].to_pylist() == [row.test["acc/mean"] for row in MADE.rows]


def test_without_experts_nothing_is_normalised():
    made = Comparison("s", "", "val", MADE.rows[:3], tasks=MADE.tasks)
    assert "ties & \\textbf{65.0} & -- &" in latex(made)
