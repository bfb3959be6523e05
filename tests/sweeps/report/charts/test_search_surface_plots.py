"""Maps and curves of searched surfaces: what lies where."""

import doctest
import math

import numpy as np
import pytest

from sweeps.report.charts import search_surface_plots
from sweeps.report.charts.search_surface_plots import CELLS, labelled, parts, picture, pictures
from sweeps.report.charts.search_surfaces import Searched
from sweeps.results.comparison import Row
from tests.sweeps.report.charts.test_search_surfaces import kept

INF = float("inf")


def searched(axis="beta", values=(0.5, 5.0), low=1.0, high=3.0, alpha=2.0, row=1) -> Searched:
    grid = np.array([[0.5, 0.4, 0.5], [0.5, 0.7, 0.6]])[-len(values) :]
    ridge = {"accuracy": grid.max(1), "low": np.full(2, low), "high": np.full(2, high)}
    ridge["alpha"] = np.full(2, alpha)
    return Searched("a<b", axis, np.array(values), np.array([0.0, 1.0, 10.0]), grid, ridge, row)


def test_a_cell_a_configuration_with_the_smallest_alpha_in_the_middle_of_the_colours():
    drawn = picture(searched())
    cells = {(v["alpha"], v["beta"]): v["accuracy"] for v in drawn["data"]["values"]}
    assert cells == {(0, 0): 50, (1, 0): 40, (2, 0): 50, (0, 1): 50, (1, 1): 70, (2, 1): 60}
    colour = drawn["layer"][0]["encoding"]["color"]
    assert colour["scale"]["domainMid"] == 50
    assert colour["scale"]["reverse"]  # blue is better
    assert drawn["encoding"]["y"]["sort"] == "descending"  # the largest beta on top
    assert drawn["data"]["values"][4]["at"] == "1; 5"


def test_marks_lie_on_their_cells():
    _, line, ring = picture(searched(low=1.0, high=10.0, alpha=1.0))["layer"]
    assert ring["data"]["values"] == [{"alpha": 1, "beta": 1}]
    assert line["data"]["values"] == [{"alpha": 1, "to": 2, "beta": 1}]
    endless = picture(searched(high=INF))
    assert endless["layer"][1]["data"]["values"][0]["to"] == 2
    assert endless["description"].endswith("for α from 1 to ∞")


def test_a_curve_has_its_band_and_ring():
    drawn = picture(searched("", (float("nan"),), low=2.5, high=5.0, alpha=3.75, row=0))
    band, _, ring = drawn["layer"]
    assert band["data"]["values"] == [{"alpha": 2.5, "to": 5.0}]
    assert ring["data"]["values"] == [{"alpha": 3.75, "accuracy": 70.0}]
    assert [v["alpha"] for v in drawn["data"]["values"]] == [0, 1, 10]


def test_a_fine_search_is_drawn_by_the_best_of_each_part():
    alphas = np.append(np.geomspace(0.01, 100, 200), INF)
    betas = np.linspace(1, 7, 90)
    grid = np.zeros((90, 201))
    grid[40, 100] = 0.75
    ridge = {name: np.full(90, 1.0) for name in ("accuracy", "low", "high", "alpha")}
    drawn = picture(Searched("a", "beta", betas, alphas, grid, ridge, 40))
    values = drawn["data"]["values"]
    assert len(values) <= CELLS**2
    (best,) = (value for value in values if value["accuracy"])
    assert (best["accuracy"], best["beta"]) == (75.0, 13)
    ring = drawn["layer"][2]["data"]["values"][0]
    assert ring == {"alpha": best["alpha"], "beta": 13}


@pytest.mark.parametrize("count", [1, 29, 30, 31, 200, 9999])
def test_parts_hold_every_value_once(count):
    found = parts(count)
    assert [i for each in found for i in range(each.start, each.stop)] == list(range(count))
    assert len(found) <= CELLS


def test_an_axis_has_few_labels():
    made = labelled(np.geomspace(1, 1000, 25), parts(25))
    assert len(made["values"]) <= 6
    assert made["labelExpr"].startswith("datum.value === 0 ? '1' : ")
    assert "'∞'" in labelled(np.array([1.0, math.inf]), parts(2))["labelExpr"]


def test_only_winners_that_searched_are_drawn(tmp_path):
    rows = [Row("ties", "static", trial_key="x"), Row("tip_adapter", "fitted", trial_key="k")]
    (found,) = pictures(rows, kept(tmp_path))
    assert (found["method"], found["axis"]) == ("tip_adapter", "beta")
    assert [task for task, _, _ in found["panels"]] == ["a", "b"]
    assert found["panels"][0][2] == "80.0 % at α = 2, beta = 5; the same for α from 1 to 3"
    assert pictures(rows, None) == []


def test_examples_hold():
    assert doctest.testmod(search_surface_plots).failed == 0
