"""What a search found: read from the file of a trial, and as a table."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from actors.artifacts.fitted_file import dump_fits
from fusion.logits.exact_alpha import exact_alpha
from fusion.methods.classifiers.grid_search import Surface
from fusion.methods.classifiers.interface import curve_of, surface_of
from sweeps.report.charts.search_surfaces import read, table, write_tables
from sweeps.results.comparison import Row


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


SURFACE = Surface(
    "beta",
    numbers(5.0, 0.5),  # in no order
    numbers(0.8, 0.75),
    numbers(1.0, 0.0),
    numbers(3.0, float("inf")),
    numbers(2.0, 1.0),
    numbers(0.0, 1.0, 10.0),
    torch.tensor([[0.5, 0.8, 0.6], [0.5, 0.75, 0.75]], dtype=torch.float64),
)


def kept(folder: Path, key: str = "k") -> Path:
    """A trial's file: a map of task `a`, a curve of `b|c`, nothing searched of `d`."""
    ends = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-2.0, 0.0], [0.0, 0.0]])
    best = exact_alpha(*ends, torch.tensor([0, 1]), at=[0.0, 0.5, 1.0])
    assert best.curve == (1.0, 1.0, 0.5)
    fits = {
        "a": {"beta": numbers(5.0)[0], "alpha": numbers(2.0)[0], **surface_of(SURFACE)},
        "b": curve_of(best, [0.0, 0.5, 1.0]),
        "d": {"weight": torch.zeros(2, 2)},
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{key}.safetensors").write_bytes(dump_fits(fits))
    return folder


def test_surfaces_are_read_in_order_of_their_values(tmp_path):
    a, b = read(kept(tmp_path), "k")
    assert (a.task, a.axis, a.values.tolist(), a.row) == ("a", "beta", [0.5, 5.0], 1)
    assert a.grid.tolist() == [[0.5, 0.75, 0.75], [0.5, 0.8, 0.6]]
    assert a.best == {"accuracy": 0.8, "low": 1.0, "high": 3.0, "alpha": 2.0}
    assert (b.task, b.axis, b.row) == ("b", "", 0)
    assert b.best == {"accuracy": 1.0, "low": 0.0, "high": 0.5, "alpha": 0.25}


@pytest.mark.parametrize("key", ["gone", None, "torn", "of before"])
def test_what_is_not_there_is_not_drawn(tmp_path, key):
    whole = (kept(tmp_path) / "k.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(whole[:-9])
    old = {"a": {"beta": numbers(5.0)[0], "surface.accuracy": numbers(0.8)}}
    (tmp_path / "of before.safetensors").write_bytes(dump_fits(old))
    assert read(tmp_path, key) == []


def test_a_row_a_configuration(tmp_path):
    lines = table(read(kept(tmp_path), "k")).to_pylist()
    assert len(lines) == 2 * (3 + 1) + (3 + 1)
    blank = {"temperature": None, "low": None, "high": None, "chosen": False}
    first = {"task": "a", "beta": 0.5, "alpha": 0.0, "accuracy": 0.5}
    assert lines[0] == {**blank, **first}
    (a, b) = (line for line in lines if line["chosen"])
    assert (a["beta"], a["alpha"], a["accuracy"], a["low"], a["high"]) == (5.0, 2.0, 0.8, 1.0, 3.0)
    assert (b["task"], b["beta"], b["alpha"]) == ("b", None, 0.25)


def test_tables_of_winners_that_searched(tmp_path):
    rows = [Row("tip_adapter", "fitted", trial_key="k"), Row("ties", "static", trial_key="other")]
    found = write_tables(rows, kept(tmp_path / "learned"), tmp_path / "surfaces")
    assert found == {"tip_adapter": tmp_path / "surfaces/tip_adapter.parquet"}
    assert [path.name for path in (tmp_path / "surfaces").iterdir()] == ["tip_adapter.parquet"]
    accuracy = pq.read_table(found["tip_adapter"])["accuracy"].to_numpy()
    assert np.isclose(accuracy.max(), 1.0)
