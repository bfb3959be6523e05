"""The table of shift sets: accuracies, and their distance from the base's."""

from sweeps.report.shift_table import table
from sweeps.results.comparison import Comparison, Row


def row(method: str, **shifts: float) -> Row:
    return Row(
        method,
        "static",
        test={"acc/mean": 0.9},
        shifts={name: {"acc/mean": value} for name, value in shifts.items()},
    )


def of(*rows: Row) -> Comparison:
    return Comparison("s", "h", "val", rows)


def test_nothing_measured_nothing_shown() -> None:
    assert table(of(row("pretrained"), row("ties"))) is None


def test_differences_are_to_the_base_on_the_same_set() -> None:
    found = table(of(row("pretrained", a=0.5, b=0.6), row("ties", a=0.55, b=0.5), row("dawe")))
    assert found is not None
    assert found["columns"] == ["a", "b", "mean"]
    assert [line["row"].method for line in found["lines"]] == ["ties", "pretrained"]
    ties = found["lines"][0]["cells"]
    assert [(cell["text"], cell["gain"]) for cell in ties] == [
        ("55.0", "+5.0"), ("50.0", "−10.0"), ("52.5", "−2.5"),
    ]  # fmt: skip


def test_a_set_that_was_not_measured_has_no_mean() -> None:
    found = table(of(row("pretrained", a=0.5, b=0.6), row("ties", a=0.55)))
    assert found is not None
    assert found["lines"][0]["cells"][1] == {"text": "—", "gain": "", "interval": ""}
    assert found["lines"][0]["cells"][2]["text"] == "—"
