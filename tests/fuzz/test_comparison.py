"""`comparison.json` and findings: read whole, refused in one line, or made again."""

import json

import pytest
from hypothesis import given

from sweeps.analysis.core import finding
from sweeps.analysis.core.finding import Finding
from sweeps.results import comparison_file
from sweeps.results.comparison import Comparison, Pair, Row
from sweeps.results.comparison_file import document
from tests.fuzz.damage import altered, mutated, only_input_errors

COMPARISON = Comparison(
    "s", "h", "val",
    (Row("ties", "static", {"density": 0.2}, 2, {"acc/mean": 0.5}, {"acc/mean": 0.4},
         {"acc/mean": (0.3, 0.5)}, {"dark": {"acc/mean": 0.2}}, {"dark": {"acc/mean": (0.1, 0.3)}},
         {"peak_bytes": 7}, "recipes/ties.yaml", "r", "k", ("a note",)),),
    tasks=("mnist",), pairs=(Pair("a", "b", 3, 1, 2, 0.5, 0.5),),
    failed=({"method": "ties", "error": "x"},), created="2026", versions={"torch": "2"},
    command="sweeps run",
)  # fmt: skip
CONTENT = json.loads(json.dumps(document(COMPARISON)))
FINDING = Finding("geometry", "c", "about", ["a"], {"t": [{"x": 1, "y": None}]}, ["t"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("comparison")


def test_what_is_written_is_read_back_equal(folder):
    (folder / "comparison.json").write_text(json.dumps(CONTENT))
    found = comparison_file.read(folder)
    assert document(found) == document(COMPARISON)
    assert json.dumps(document(found)) == json.dumps(document(COMPARISON))  # 7 is not 7.0


@given(mutated(CONTENT))
def test_any_field_of_a_comparison(folder, content):
    (folder / "comparison.json").write_text(json.dumps(content))
    with only_input_errors():
        found = comparison_file.read(folder)
        assert json.dumps(document(found), allow_nan=False)
        assert all(not row.recipe or ".." not in row.recipe.split("/") for row in found.rows)


@given(altered(json.dumps(CONTENT).encode()))
def test_damaged_bytes_of_a_comparison(folder, data):
    (folder / "comparison.json").write_bytes(data)
    with only_input_errors():
        comparison_file.read(folder)


@given(mutated(json.loads(json.dumps(vars(FINDING)))))
def test_any_field_of_a_finding(folder, content):
    (folder / "geometry.json").write_text(json.dumps(content))
    found = finding.read(folder, "geometry", "c")
    assert found is None or (found.part, found.context) == ("geometry", "c")
