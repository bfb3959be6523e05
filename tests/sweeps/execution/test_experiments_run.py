"""Sweeps with an unseen task, end to end; and what methods read of a task that no expert is of."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from actors.artifacts.recipe import Recipe
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.pool.pool import open_pool
from fusion.errors import InputError
from tests.sweeps.program import sweeps

SEEN, UNSEEN = ("lines", "tones"), "blobs"


@pytest.fixture(scope="module")
def alone(tiny_pool, tmp_path_factory):
    """A folder whose data set has test rows alone."""
    folder = tmp_path_factory.mktemp("alone") / UNSEEN
    folder.mkdir()
    (folder / "test.parquet").symlink_to(tiny_pool.root / f"data/{UNSEEN}/test.parquet")
    return folder


@pytest.fixture
def experts(tiny_pool, alone, tmp_path):
    """Two experts and three tasks, in this process."""
    root = tiny_pool.root
    pool = open_pool(str(root / "base"), {name: str(root / "experts" / name) for name in SEEN})
    places = {name: root / "data" / name for name in SEEN} | {UNSEEN: alone}
    tasks = {name: open_task(TaskSource(name, str(place))) for name, place in places.items()}
    data = prepare_data(
        pool.base, tasks, Splits(), ("fit", "select", "report"), tmp_path, unseen=[UNSEEN]
    )
    names = {name: f"{name} 1" for name in ("pretrained", *SEEN)}
    return local_experts(pool, data, EmbeddingCache(tmp_path / "embeddings", names))


def test_an_unseen_task_is_merged_for_and_never_read_before_the_end(experts):
    assert list(experts.runner.data[UNSEEN].rows) == ["report"]
    merged = Recipe("task_arithmetic", {"scale": 0.3})
    select, report = (experts.evaluate(merged, role) for role in ("select", "report"))
    assert set(select.scores) == set(SEEN)
    assert set(report.scores) == {*SEEN, UNSEEN}
    assert select.metrics()["acc/mean"] == select.metrics()["acc/seen"]
    assert report.metrics()["acc/unseen"] == report.metrics()[f"acc/{UNSEEN}"]
    found = report.metrics()
    assert found["acc/seen"] == pytest.approx((found["acc/lines"] + found["acc/tones"]) / 2)
    for method in ("experts", "emr"):
        assert set(experts.evaluate(Recipe(method), "report").scores) == set(SEEN)
    experts.embed("lines", "select")  # of the tasks that have such rows


def test_fits_and_micro_batches_are_of_seen_tasks(experts):
    fitted, _ = experts.fit(Recipe("tip_adapter", {"shots": 2}))
    assert set(experts.evaluate(Recipe("tip_adapter", {"shots": 2}, fitted), "report").scores) == (
        set(SEEN)
    )
    recipe = Recipe("wemoe", {"steps": 1, "batch_size": 2, "adapt_on": "report"})
    # Were the unseen task's images read, this would fail on them.
    experts.runner.data[UNSEEN].rows["report"].file.unlink()
    _, (losses,) = experts.train(recipe, None, 0, 1, 0)
    assert set(losses) == set(SEEN)
    with pytest.raises((InputError, OSError)):
        experts.evaluate(Recipe("pretrained"), "report")


@pytest.mark.slow
def test_a_sweep_with_an_unseen_task_under_shift(tiny_pool, alone, tmp_path):
    from tests.sweeps.learning_pool import make_extractor

    spec = tiny_pool.spec(
        methods={
            "task_arithmetic": {"scale": {"grid": [0.1, 0.5]}},
            "regmean": {},
            "adamerging": {"steps": 2, "batch_size": 4, "adapt_on": "report"},
            "dawe": {"extractor": str(make_extractor(tmp_path / "extractor")), "steps": 2,
                     "batch_size": 4},
            "emr": {},
        },
        shifts={"noise": {"corruption": "gaussian_noise", "severity": 5}},
        adapt_on_shift="noise",
    )  # fmt: skip
    del spec["pool"]["experts"][UNSEEN]
    spec["tasks"][UNSEEN]["dataset"] = str(alone)
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(spec))
    done = sweeps("run", file, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "outputs/tiny"
    found = json.loads((folder / "comparison.json").read_text())
    assert (found["metric"], found["unseen"]) == ("acc/seen", [UNSEEN])
    assert found["adapt_on_shift"] == "noise"
    rows = {row["method"]: row for row in found["rows"]}
    for name, row in rows.items():
        assert f"acc/{UNSEEN}" not in row["val"]
        assert row["val"]["acc/mean"] == row["val"]["acc/seen"]
        low, high = row["test_ci95"]["acc/seen"]
        assert low <= row["test"]["acc/seen"] <= high
        out = name in ("experts", "emr")
        assert ("acc/unseen" in row["test"]) != out
        assert set(row["shifts"]) == {"noise"}  # of gates too: their features were made
        assert ("acc/unseen" in row["shifts"]["noise"]) != out
    noise = "under noise (gaussian_noise, severity 5)"
    assert noise in rows["regmean"]["notes"][0]
    assert rows["adamerging"]["notes"] == [
        f"adapted to unlabelled test images of those it is reported on {noise}, seen tasks alone"
    ]
    assert noise in rows["dawe"]["notes"][0]
    assert any(note.startswith("unseen tasks left out") for note in rows["emr"]["notes"])
    table = pq.read_table(folder / "comparison.parquet")
    assert {"test/acc/unseen", "shift/noise/acc/seen"} <= set(table.column_names)
    page = (folder / "report.html").read_text()
    assert "adapted to</small>" in page
    assert "<small>unseen</small>" in page
    # With clean images the same methods learn something else, under other keys.
    spec |= {"name": "clean", "adapt_on_shift": None}
    file.write_text(json.dumps(spec))
    done = sweeps("run", file, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    clean = json.loads((tmp_path / "outputs/clean/comparison.json").read_text())["rows"]
    keys = {row["method"]: row["trial_key"] for row in clean}
    same = {name for name, row in rows.items() if row["trial_key"] == keys[name]}
    assert rows.keys() - same == {"regmean", "adamerging", "dawe"}
    from safetensors.torch import load_file

    learned = [
        load_file(tmp_path / f"outputs/{name}/learned/{key}.safetensors")
        for name, key in (("tiny", rows["adamerging"]["trial_key"]), ("clean", keys["adamerging"]))
    ]
    assert any(not torch.equal(learned[0][name], value) for name, value in learned[1].items())
