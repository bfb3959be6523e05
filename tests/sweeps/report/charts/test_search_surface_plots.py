"""Maps and curves of searched surfaces: what lies where."""

import doctest
import io
import re
from base64 import b64decode
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from sweeps.report.charts import search_surface_plots
from sweeps.report.charts.search_surface_plots import picture, pictures, shades, ticks
from sweeps.report.charts.search_surfaces import Searched
from sweeps.results.comparison import Row
from tests.sweeps.report.charts.test_search_surfaces import kept

INF = float("inf")


def searched(axis="beta", values=(0.5, 5.0), low=1.0, high=3.0, alpha=2.0, row=1) -> Searched:
    grid = np.array([[0.5, 0.4, 0.5], [0.5, 0.7, 0.6]])[-len(values) :]
    ridge = {"accuracy": grid.max(1), "low": np.full(2, low), "high": np.full(2, high)}
    ridge["alpha"] = np.full(2, alpha)
    return Searched("a<b", axis, np.array(values), np.array([0.0, 1.0, 10.0]), grid, ridge, row)


def test_a_pixel_a_configuration_the_largest_beta_on_top():
    drawn = str(picture(searched()))
    data = re.search(r"base64,([^\"]+)", drawn)[1]
    pixels = np.asarray(Image.open(io.BytesIO(b64decode(data))))
    assert pixels.shape == (2, 3, 4)
    assert pixels[0, 1].tolist() == [*search_surface_plots.BETTER, 242]  # beta 5, alpha 1: the best
    assert pixels[1, 1, :3].tolist() == list(search_surface_plots.WORSE)
    assert pixels[:, 0, 3].tolist() == [0, 0]
    assert 0 < pixels[1, 1, 3] < pixels[0, 1, 3]  # half as far: one scale
    assert "a&lt;b" in drawn
    assert "a<b" not in drawn


def test_marks_lie_on_their_cells():
    drawn = str(picture(searched(low=1.0, high=10.0, alpha=1.0)))
    ring = re.search(r'circle class="chosen" cx="([\d.]+)%" cy="([\d.]+)"', drawn)
    assert float(ring[1]) == pytest.approx(50)  # the middle of three columns
    assert float(ring[2]) == pytest.approx(search_surface_plots.HEIGHT / 4)  # the upper of two rows
    line = re.search(r'class="plateau" x1="([\d.]+)%" x2="([\d.]+)%"', drawn)
    assert [float(line[1]), float(line[2])] == pytest.approx([50, 83.33])
    endless = str(picture(searched(high=INF)))
    assert 'x2="100.00%"' in endless
    assert "for α from 1 to ∞" in endless


def test_a_curve_has_its_band_and_ring():
    drawn = str(picture(searched("", (float("nan"),), low=2.5, high=5.0, alpha=3.75, row=0)))
    band = re.search(r'rect class="plateau" x="([\d.]+)%" width="([\d.]+)%"', drawn)
    assert [float(band[1]), float(band[2])] == [25, 25]
    assert 'cx="37.50%"' in drawn
    assert "<image" not in drawn


def test_a_surface_without_differences_is_blank():
    assert not shades(np.full((2, 3), 0.5))[..., 3].any()


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.0, *np.geomspace(0.01, 100, 41)], ["0", "0.1", "1", "10", "100"]),
        ([*np.geomspace(0.01, 10, 13), INF], ["0.01", "0.1", "1", "∞"]),
        (np.linspace(0.1, 7, 200), ["2", "4", "6"]),
        ([0.3, 7.0], ["0.3", "7"]),
        ([INF], ["∞"]),
    ],
)
def test_ticks_are_round_and_apart(values, wanted):
    found = ticks(np.array(values))
    assert [text for _, text in found if text in wanted] == wanted
    places = [at for at, _ in found]
    assert places == sorted(places)
    assert all(b - a >= 0.08 * len(values) for a, b in pairwise(places))


def test_only_winners_that_searched_are_drawn(tmp_path):
    rows = [Row("ties", "static", trial_key="x"), Row("tip_adapter", "fitted", trial_key="k")]
    (found,) = pictures(rows, kept(tmp_path))
    assert (found["method"], found["axis"]) == ("tip_adapter", "beta")
    assert [task for task, _, _ in found["panels"]] == ["a", "b"]
    assert found["panels"][0][2] == "80.0 % at α = 2, beta = 5; the same for α from 1 to 3"
    assert pictures(rows, None) == []


def test_examples_hold():
    assert doctest.testmod(search_surface_plots).failed == 0
