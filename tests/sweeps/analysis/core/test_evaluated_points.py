"""Points are evaluated once, in chunks, and survive a kill; the probe's rows are fixed."""

import json

import numpy as np
import pytest
import torch
from rich.console import Console

from actors.data.task_rows import Rows, TaskData
from sweeps.analysis.core.evaluated_points import PROBE, Points, labels_of, mixture, with_probe
from sweeps.console.progress import Progress
from tests.sweeps.analysis.geometry_pool import NAMES, Bowl, pixel_file


def points_of(tmp_path, experts):
    return Points(experts, NAMES, "select", tmp_path / "p.json", Progress(Console(quiet=True)))


def test_a_point_is_its_coefficients(tmp_path):
    experts = Bowl()
    points = points_of(tmp_path, experts)
    base, mixed = points.of({}), mixture(points, "a", "b", 0.25)
    assert mixed.tolist() == [0.75, 0.25, 0.0]
    assert (points.key(base), points.key(mixed)) == ("", "a*0.75 b*0.25")
    found = points([mixed, base, mixed], "walk")
    assert experts.asked == [(0.75, 0.25, 0.0), (0.0, 0.0, 0.0)]
    # 0.75·(3, 0) + 0.25·(1, 2) = (2.5, 0.5), from (1, 1): 2.25 + 0.25
    assert found[0] == found[2]
    assert found[0]["nll/mean"] == pytest.approx(2.5)
    assert found[1]["nll/mean"] == pytest.approx(2.0)
    assert mixture(points, "b", "a", 0.0).tolist() == [0.0, 1.0, 0.0]


def test_what_was_known_when_killed_is_not_asked_again(tmp_path):
    walk = [torch.tensor([step / 20, 0.0, 0.0]) for step in range(20)]
    with pytest.raises(ConnectionError):
        points_of(tmp_path, Bowl(fails_after=17))(walk, "walk")
    assert len(json.loads((tmp_path / "p.json").read_text())) == 16  # two chunks of 4 × 2 replicas
    again = Bowl()
    found = points_of(tmp_path, again)(walk, "walk")
    assert [a for a, _, _ in again.asked] == pytest.approx([0.8, 0.85, 0.9, 0.95])
    whole = points_of(tmp_path / "whole", Bowl())(walk, "walk")
    assert found == whole
    (tmp_path / "p.json").write_text('{"a*1": {"nll/mea')  # damaged: begins anew
    assert points_of(tmp_path, Bowl())(walk, "walk") == whole


def test_the_probe_is_a_fixed_part_of_select(tmp_path):
    some = np.arange(100, 400, 3)
    pixels = pixel_file(tmp_path / "pixels.arrow", [i % 7 for i in range(400)])
    data = {
        "part": TaskData("part", tmp_path / "head", {"select": Rows(pixels, some)}),
        "whole": TaskData("whole", tmp_path / "head", {"select": Rows(pixels)}),
    }
    found = with_probe(data, 30, seed=1)
    part, whole = (found[name].rows[PROBE].indices for name in data)
    assert len(part) == len(whole) == 30
    assert set(part) < set(some)
    assert list(part) == sorted(set(part))
    assert labels_of(found["part"], PROBE).tolist() == [i % 7 for i in part]
    alone = with_probe({"part": data["part"]}, 30, seed=1)["part"].rows[PROBE].indices
    assert list(alone) == list(part)
    assert list(with_probe(data, 30, seed=2)["part"].rows[PROBE].indices) != list(part)
    for rows in (0, 400):
        whole = with_probe(data, rows, seed=1)
        assert all(task.rows[PROBE] is task.rows["select"] for task in whole.values())
