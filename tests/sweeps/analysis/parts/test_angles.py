"""The parts of an analysis over a bowl: every number by hand."""

import math

import pyarrow.parquet as pq
import pytest
import torch

from fusion.errors import InputError
from sweeps.analysis.core import finding
from sweeps.analysis.core.evaluated_points import PROBE
from sweeps.analysis.core.inputs import AnalysisOptions, read_options
from sweeps.analysis.figures import pictures
from sweeps.analysis.html_page import write_page
from sweeps.analysis.parts import landscape, pair_averages
from sweeps.analysis.parts.angles import gram
from sweeps.analysis.parts.soup_vs_ensemble import gap
from sweeps.analysis.run import PARTS, diagnosis
from tests.sweeps.analysis.geometry_pool import LOWEST, Bowl, N, given

RECIPES = {
    "a": {"learning_rate": 3e-5, "epochs": 4},
    "b": {"learning_rate": 1e-5, "epochs": 4},
    "c": {"learning_rate": 3e-5, "epochs": 4},
}
FACTS = {"sweep": "s", "select": "val", "report": "test", "linked": True}


def line(finding, table, **wanted):
    (found,) = [row for row in finding.tables[table] if all(row[k] == v for k, v in wanted.items())]
    return found


def test_angles_and_norms(tmp_path):
    found = gram(given(tmp_path, recipes=RECIPES), AnalysisOptions())
    pair = line(found, "angles", first="a", second="b")
    assert pair["inner"] == 3
    assert pair["cosine"] == pytest.approx(1 / math.sqrt(5))
    assert pair["angle"] == pytest.approx(63.4349, abs=1e-4)
    assert line(found, "angles", first="a", second="c")["angle"] == pytest.approx(0, abs=1e-5)
    names = [row["cosine"] for row in found.tables["cosines"]]
    assert all(list(row) == ["cosine", *names] for row in found.tables["cosines"])
    matrix = {row["cosine"]: row for row in found.tables["cosines"]}
    assert matrix["a"]["b"] == matrix["b"]["a"] == pytest.approx(1 / math.sqrt(5))
    assert matrix["a"]["a"] == pytest.approx(1)
    finding.write(found, tmp_path / "out")
    head, *_ = (tmp_path / "out/gram-cosines.csv").read_text().splitlines()
    assert head == ",".join(f'"{name}"' for name in ("cosine", *names))
    b = line(found, "experts", expert="b")
    assert (b["norm"], b["acc/mean"], b["learning_rate"]) == (pytest.approx(5**0.5), 0.9, 1e-5)
    assert "63.4° (a, b)" in found.lines[0] or "63.4° (b, c)" in found.lines[0]


def test_the_plane_goes_through_the_base_and_the_two_best_that_are_not_alike(tmp_path):
    experts = Bowl()
    found = landscape.plane(given(tmp_path, experts), AnalysisOptions(size=5))
    marks = {row["model"]: row for row in found.tables["marks"]}
    root = math.sqrt(5)
    for name, x, y, loss in (
        ("pretrained", 0, 0, 2), ("b", root, 0, 1), ("a", 3 / root, 6 / root, 5),
    ):  # fmt: skip
        assert (marks[name]["x"], marks[name]["y"]) == pytest.approx((x, y))
        assert marks[name]["loss"] == pytest.approx(loss)
    u1, u2 = torch.tensor([1.0, 2.0]) / root, torch.tensor([2.0, -1.0]) / root
    assert len(found.tables["points"]) == 25
    for row in found.tables["points"]:
        at = row["x"] * u1 + row["y"] * u2
        assert row["loss"] == pytest.approx(float((at - LOWEST).square().sum()), abs=1e-5)
        assert row["error"] == 1 - row["acc/mean"]
    assert {(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)} <= set(experts.asked)
    assert experts.roles == {"select", PROBE}
    assert f"{N} images" in found.about


def test_a_plane_that_is_killed_goes_on_to_the_same_table(tmp_path):
    whole = landscape.plane(given(tmp_path / "whole"), AnalysisOptions(size=5))
    cut = tmp_path / "cut"
    with pytest.raises(ConnectionError):
        landscape.plane(given(cut, Bowl(fails_after=20)), AnalysisOptions(size=5))
    second = Bowl()
    again = landscape.plane(given(cut, second), AnalysisOptions(size=5))
    assert again == whole
    assert len(second.asked) == 25 + 3 - 16  # grid and marks, less two chunks of 4 × 2 replicas


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("pretrained", "a", "c"), "'c' lies on the line through 'base' and 'a'"),
        (("a", "c", "b"), "'c' equals 'a'"),
        (("a", "best", "b"), "three different models needed"),
    ],
)
def test_models_that_span_no_plane(tmp_path, names, said):
    with pytest.raises(InputError, match=said):
        landscape.plane(given(tmp_path), AnalysisOptions(plane=names))


def test_a_plane_may_be_named(tmp_path):
    where = landscape.chosen_plane(
        given(tmp_path), AnalysisOptions(plane=("second", "best", "pretrained"))
    )
    assert list(where.marks) == ["base", "a", "b"]
    other = landscape.chosen_plane(
        given(tmp_path), AnalysisOptions(plane=("pretrained", "best", "second"))
    )
    assert list(other.marks) == ["base", "b", "a"]


def test_advantage_of_averaging(tmp_path):
    found = pair_averages.angles(given(tmp_path), AnalysisOptions())
    assert len(found.tables["pairs"]) == 3
    pair = line(found, "pairs", first="b", second="a")
    # the middle (2, 1) has loss 1: 90 %, as b has; a has 50 %
    assert (pair["acc_first"], pair["acc_second"], pair["acc_middle"]) == (0.9, 0.5, 0.9)
    assert (pair["over_mean"], pair["over_best"]) == (pytest.approx(0.2), 0)
    assert line(found, "pairs", first="a", second="c")["over_mean"] == 0
    assert found.lines[0].startswith("Of 3 pairs the average beats the better model in 0")
    assert len(pair_averages.angles(given(tmp_path), AnalysisOptions(most=2)).tables["pairs"]) == 1


def test_barriers(tmp_path):
    found = landscape.barriers(given(tmp_path), AnalysisOptions(pairs=(("b", "a"),)))
    row = line(found, "path", alpha=0.5)
    assert (row["loss"], row["excess"]) == (pytest.approx(1), pytest.approx(-2))
    assert line(found, "pairs")["height"] == 0
    assert line(found, "path", alpha=1.0)["loss"] == pytest.approx(5)
    default = landscape.barriers(given(tmp_path), AnalysisOptions())
    assert [(row["first"], row["second"]) for row in default.tables["pairs"]] == [
        ("b", "a"), ("b", "c"),
    ]  # fmt: skip


def test_gain_along_one_hyperparameter(tmp_path):
    found = pair_averages.grid(given(tmp_path, recipes=RECIPES), AnalysisOptions())
    row = line(found, "gains", first="b", second="a")  # c has the same value as a, and comes later
    assert (row["hyperparameter"], row["fixed"]) == ("learning_rate", "")
    assert (row["first_value"], row["second_value"], row["gain"]) == (1e-5, 3e-5, 0)
    assert (
        "Skipped: no two models differ"
        in pair_averages.grid(given(tmp_path), AnalysisOptions()).lines[0]
    )


def test_a_soup_of_linear_models_is_their_ensemble(tmp_path):
    found = gap(given(tmp_path), AnalysisOptions(pairs=(("a", "b"),), alpha=0.3))
    assert [row["temperature"] for row in found.tables["pairs"]] == ["calibrated", "one"]
    for row in found.tables["pairs"]:
        assert row["rows"] == N // 2
        assert row["soup"] > 0.1
        assert row["gap"] == pytest.approx(0, abs=1e-6)
        assert row["approximation"] == pytest.approx(0, abs=1e-3)
    assert found.tables["pairs"][1]["variance"] > 0.1
    assert "needs float32" in gap(given(tmp_path, dtype="bfloat16"), AnalysisOptions()).lines[0]


def test_what_is_said_of_soups(tmp_path):
    look = given(tmp_path, recipes={**RECIPES, "b": {"learning_rate": 2e-4}})
    tall = finding.Finding("barriers", "x", "", tables={
        "pairs": [{"first": "b", "second": "a", "height": 0.3}]})  # fmt: skip
    said = " ".join(diagnosis(look, [tall]).lines)
    assert "'a' and 'c' are the same model" in said
    assert "learning rate of 0.0001 or more: 'b'" in said
    assert "loss barrier of 0.3 between 'b' and 'a'" in said
    assert "no soup to diagnose" in diagnosis(given(tmp_path, soup=False), []).lines[0]


def test_models_without_a_score_are_left_out(tmp_path):
    look = given(tmp_path)
    look = given(tmp_path, singles={**look.singles, "b": {"acc/mean": math.nan}})
    assert look.ranked == ["a", "c"]
    for part in ("plane", "grid"):
        assert "Skipped" in PARTS[part](look, AnalysisOptions()).lines[0]
    alone = given(tmp_path, singles={key: {"acc/mean": math.nan} for key in "abc"})
    for part in ("plane", "angles", "barriers", "gap"):
        assert "Skipped" in PARTS[part](alone, AnalysisOptions()).lines[0], part


def test_findings_are_files_and_pages_are_made_of_them_alone(tmp_path):
    look, out = given(tmp_path / "x", recipes=RECIPES), tmp_path / "out"
    for compute in PARTS.values():
        finding.write(compute(look, AnalysisOptions(size=4)), out)
    back = [finding.read(out, part, "x") for part in PARTS]
    assert finding.read(out, "gram", "of other models") is None
    rows = pq.read_table(out / "plane-points.parquet").to_pylist()
    assert rows == back[1].tables["points"]
    page, drawn = write_page([*back, diagnosis(look, back)], out, FACTS)
    names = {path.stem for path in drawn}
    assert names == {
        "gram", "gram-cosines", "plane-loss", "plane-error", "angles", "barriers", "grid-0", "gap",
    }  # fmt: skip
    text = page.read_text()
    assert text.count("data:image/png;base64,") == len(drawn)
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert text.index("What the numbers say of soups") < text.index("Landscape")
    skipped = finding.Finding("plane", "x", "", ("Skipped.",))
    assert pictures(skipped) == []
    assert finding.write(skipped, out) == [out / "plane.json"]
    write_page([skipped, back[2]], out, FACTS)
    assert [path.name for path in (out / "plots").iterdir()] == ["angles.png"]
    assert not list(out.glob("plane-*"))
    assert (out / "angles-pairs.csv").exists()


@pytest.mark.parametrize(("plane", "pairs"), [("a", []), ("a,b,c,a", []), ("", ["a"])])
def test_names_that_are_too_few_or_too_many(plane, pairs):
    with pytest.raises(InputError, match="allowed"):
        read_options(plane, pairs, size=21, most=12, alpha=0.5)


def test_two_names_make_a_plane_with_the_base():
    wish = read_options("a, b", ["a,b"], size=3, most=2, alpha=0.1)
    assert wish == AnalysisOptions(
        ("pretrained", "a", "b"), (("a", "b"),), size=3, most=2, alpha=0.1
    )
