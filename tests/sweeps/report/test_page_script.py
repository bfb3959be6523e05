"""The page's scripts, run by Node.js: what its buttons copy and save, and that Vega draws its
charts. The strings that the buttons hold are tested without Node.js, too."""

import json
import re
import shutil
import subprocess
from base64 import b64decode
from pathlib import Path

import pytest

import sweeps
from sweeps.report import exports
from sweeps.report.charts.search_surface_plots import picture
from sweeps.report.html import html
from tests.sweeps.report.charts.test_search_surface_plots import searched
from tests.sweeps.report.test_html import EVIL, accuracies, finished, specs, trial, trials

TEMPLATES = Path(sweeps.__file__).parent / "templates"

POSITIONS = ("x", "y", "x2", "y2")

NODE = shutil.which("node")

HEIGHT_BY_ROWS = 'Dropping "fit-y" because spec has discrete height.'
"""Vega-Lite's notice of a chart with `width: container` whose height grows with its rows."""

needs_node = pytest.mark.skipif(NODE is None, reason="needs Node.js, a JavaScript engine")


def node(**request: object) -> object:
    """The answer of `page_script.js`."""
    command = [str(NODE), str(Path(__file__).with_name("page_script.js"))]
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def odd_trials() -> list:
    """A method whose name HTML, CSV and LaTeX read as more than a name."""
    return [*trials(), trial(f'=a,b"{EVIL}', {}, accuracies(0.3))]


def held(page: str) -> dict[str, str]:
    """What the page holds for its buttons: id of the element -> its text."""
    pattern = r'<script type="[a-z/]+" id="(file-\w+)">(.*?)</script>'
    return dict(re.findall(pattern, page, re.S))


def test_the_buttons_hold_the_files() -> None:
    made = finished(odd_trials())
    found = held(html(made, odd_trials()))
    assert json.loads(found["file-csv"])["text"] == exports.csv_text(made)
    assert json.loads(found["file-latex"])["text"] == exports.latex(made)
    assert found["file-parquet"].strip() == exports.parquet(made)
    assert EVIL in exports.csv_text(made).replace('""', '"')


@needs_node
def test_the_buttons_copy_and_save() -> None:
    made = finished(odd_trials())
    page = html(made, odd_trials())
    buttons = re.findall(r'<button type="button" id="((?:copy|save)-\w+)">', page)
    assert len(buttons) == 5
    done = node(
        script=(TEMPLATES / "report.js").read_text("utf-8"),
        elements=held(page) | {"said": ""} | dict.fromkeys(buttons, ""),
        clicks=buttons,
    )
    files = {
        "csv": exports.csv_text(made).encode(),
        "latex": exports.latex(made).encode(),
        "parquet": b64decode(exports.parquet(made)),
    }
    names = {"csv": "comparison.csv", "latex": "comparison.tex", "parquet": "comparison.parquet"}
    for button in buttons:
        act, kind = button.split("-")
        (one,) = done[button]
        assert one["to"] == ("clipboard" if act == "copy" else "file")
        assert one.get("name") == (None if act == "copy" else names[kind])
        assert b64decode(one["base64"]) == files[kind]


def charts() -> list[dict]:
    """Charts of a page, and those of searched surfaces."""
    surfaces = (searched(), searched("", (float("nan"),), low=2.5, high=5.0, alpha=3.75, row=0))
    return [*specs(html(finished(trials()), trials())), *map(picture, surfaces)]


def test_marks_with_their_own_data_have_every_field_that_places_them() -> None:
    """Vega drops a mark that lacks a field, and warns of an infinite extent."""
    own = 0
    for spec in charts():
        for layer in spec.get("layer", ()):
            if "data" not in layer:
                continue
            places = spec["encoding"] | layer.get("encoding", {})
            fields = {places[each].get("field") for each in POSITIONS if each in places} - {None}
            own += 1
            for value in layer["data"]["values"]:
                assert fields <= value.keys(), spec["description"]
    assert own >= 5


@needs_node
def test_vega_draws_every_chart_without_a_warning() -> None:
    given = charts()
    for spec, done in zip(given, node(vega=str(TEMPLATES / "vega"), specs=given), strict=True):
        assert set(done["warnings"]) <= {HEIGHT_BY_ROWS}, spec["description"]
        marked = '"chosen"' in json.dumps(spec)
        assert ("chosen" in done["svg"]) == marked, spec["description"]
