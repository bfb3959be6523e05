"""Vega-Lite specifications of the report's charts."""

from sweeps.report.charts.vega import STEP, bars, cells


def test_a_matrix_of_few_rows_has_room_for_its_labels() -> None:
    """Vega adds labels and legend to the height of the rows; `fit` would take them off it."""
    values = [{"a": "x", "b": "y", "n": 1.0, "text": "1"}]
    made = cells("label", values, ("a", "b", "n"), (["x"], ["y"]), "n")
    for spec in (made, bars("label", {"scale": 1.0})):
        assert spec["height"] == {"step": STEP}
        assert spec["autosize"]["type"] == "fit-x"
