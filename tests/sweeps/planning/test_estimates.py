"""What statistics and images under shift take, by hand, and as `sweeps plan` says it."""

from __future__ import annotations

from actors.files.cache_dir import cache_dir
from sweeps.cluster import ray_connection
from sweeps.planning.estimates import shifted_bytes, shifted_images
from sweeps.planning.prepare import prepare
from sweeps.planning.print_plan import facts
from sweeps.planning.statistics_cost import statistics_costs
from sweeps.spec.sweep import validate

GRAMS = 2 * 4 * (3 * 32**2 + 64**2)
"""Of an expert: two layers; q with k and v, out and fc1 read 32 numbers, fc2 64."""
IMAGE = 32 * 32 * 3


def ready(tiny_pool, folder, **changes):
    spec = validate(tiny_pool.spec(**changes), "s.yaml")
    return prepare(spec, folder, ray_connection.this_machine())


def test_statistics_by_hand(tiny_pool, tmp_path):
    prepared = ready(tiny_pool, tmp_path, methods={
        "fisher": {"floor": {"grid": [1e-6, 1e-3]}},
        "regmean": {"non_diagonal": {"grid": [0.5, 0.9, 1.0]}},
        "regmean_plusplus": {"non_diagonal": {"grid": [0.5, 0.9]}},
    })  # fmt: skip
    found, model = statistics_costs(prepared.spec, prepared.pool), prepared.pool.parameters
    assert found["fisher"].disk == 3 * 4 * model  # one model an expert; both trials read it
    assert (found["fisher"].memory, found["fisher"].images) == (2 * 4 * model, 1)
    assert found["regmean"].disk == 3 * GRAMS  # all trials read the same
    assert found["regmean_plusplus"].disk == 2 * 3 * GRAMS  # each its own
    assert found["regmean"].memory == (3 + 2) * 4 * 64**2 > GRAMS  # while the largest is merged
    assert prepared.load.training_bytes > 2 * 4 * model
    lines = [text for name, text in facts(prepared) if name == "statistics"]
    assert lines[1] == "regmean: 81.9 kB more a replica while they are gathered, 172.0 kB of cache"
    assert [line.split(":")[0] for line in lines] == ["fisher", "regmean", "regmean_plusplus"]


def test_statistics_that_each_trial_asks_for(tiny_pool, tmp_path):
    spec = validate(
        tiny_pool.spec(methods={
            "fisher": {"estimate": "batch", "batch_size": {"choice": [4, 16]}, "trials": 8},
            "regmean_plusplus": {"ridge": {"loguniform": [1e-6, 1e-2]}, "trials": 100},
        }),
        "s.yaml",
    )  # fmt: skip
    prepared = prepare(spec, tmp_path, ray_connection.this_machine())
    found = statistics_costs(spec, prepared.pool)
    assert found["fisher"].images == 16
    assert found["fisher"].disk == 2 * 3 * 4 * prepared.pool.parameters  # there are two kinds
    assert found["regmean_plusplus"].disk == 100 * 3 * GRAMS  # of which 64 are known


def test_without_either_nothing_is_said(tiny_pool, tmp_path):
    prepared = ready(tiny_pool, tmp_path)
    assert statistics_costs(prepared.spec, prepared.pool) == {}
    assert shifted_images(prepared) == prepared.load.training_bytes == 0
    assert not {"statistics", "shifts"} & {name for name, _ in facts(prepared)}


def test_images_under_shift_are_counted_once_each(tiny_pool, tmp_path):
    shifts = {
        "noisy": {"corruption": "gaussian_noise", "severity": 3},
        "same": {"corruption": "gaussian_noise", "severity": 3},
        "blurred": {"corruption": "motion_blur", "task": "tones"},
        "others": {"dataset": str(tiny_pool.root / "data" / "tones"), "task": "tones"},
    }
    prepared = ready(tiny_pool, tmp_path, shifts=shifts)
    assert shifted_images(prepared) == 3 * 60 + 60 + 60
    assert shifted_bytes(prepared) == 300 * IMAGE
    assert dict(facts(prepared))["shifts"] == "300 more images: 921.6 kB of pixel cache"
    adapted = ready(
        tiny_pool, tmp_path, shifts=shifts, adapt_on_shift="noisy",
        methods={"regmean": {}, "adamerging": {"steps": 1, "adapt_on": "report"}},
    )  # fmt: skip
    assert shifted_images(adapted) == 300 + 3 * 72  # fit rows; those of report are there


def test_the_disk_has_to_hold_them(tiny_pool, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("sweeps.planning.prepare.check_disk", asked.__setitem__)
    shifts = {"noisy": {"corruption": "gaussian_noise"}}
    prepared = ready(tiny_pool, tmp_path, shifts=shifts, methods={"regmean": {}})
    assert prepared.row_bytes == 3 * 140 * IMAGE
    assert asked[cache_dir()] == (3 * 140 + 180) * IMAGE + 3 * GRAMS
