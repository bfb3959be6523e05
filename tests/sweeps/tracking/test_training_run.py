"""Trainings in MLflow: a run a fine-tuning, nothing twice."""

import shutil
from types import SimpleNamespace

import pytest

from fusion.errors import InputError
from sweeps.tracking import mlflow_store
from sweeps.tracking.training_run import TrainingRun

SPEC = {"name": "t", "tasks": {"a": {"dataset": "data/a"}}, "mlflow": {"tracking_uri": None}}


def result(key, rate, select, report):
    return SimpleNamespace(
        key=key, task="a", params={"learning_rate": rate}, select=select, report=report, seconds=2.0
    )


RESULTS = [result("k1", 1e-3, 0.5, 0.25), result("k2", 1e-2, 0.75, 0.625),
           result("k3", 1.0, 0.125, None)]  # fmt: skip


def test_each_fine_tuning_is_one_run_of_the_training(tmp_path):
    out = tmp_path / "experts"
    (out / "trained").mkdir(parents=True)
    (out / "pool.yaml").write_text("pool: {}\n")
    file = out / "trained" / "a.json"
    file.write_text("{}")
    for count in (1, 3):  # interrupted, and gone on with
        told = TrainingRun("t", out, None, None, print)
        page = told.log(SPEC, [(each, file) for each in RESULTS[:count]], [out / "pool.yaml"])
    assert told.serve == f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"
    client, experiment = mlflow_store.connect(None, None, tmp_path)
    (parent,) = client.search_runs([experiment], "tags.role = 'training'")
    assert page == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{parent.info.run_id}"
    assert (parent.info.run_name, parent.info.status) == ("t", "FINISHED")
    assert parent.data.params == {"name": "t", "tasks.a.dataset": "data/a"}
    assert parent.data.metrics == {"val/score/a": 0.75, "test/score/a": 0.625}
    assert [each.path for each in client.list_artifacts(parent.info.run_id)] == ["pool.yaml"]
    runs = client.search_runs([experiment], "tags.role = 'trial'")
    found = {run.info.run_name: run.data for run in runs}
    assert set(found) == {f"fine_tune task=a learning_rate={rate}" for rate in (0.001, 0.01, 1)}
    best = found["fine_tune task=a learning_rate=0.01"]
    assert best.params == {"method": "fine_tune", "task": "a", "learning_rate": "0.01"}
    assert (best.metrics["val/score/a"], best.metrics["test/score/a"]) == (0.75, 0.625)
    assert best.metrics["trial_s"] == 2.0
    stopped = found["fine_tune task=a learning_rate=1"].metrics
    assert (stopped["val/score/a"], "test/score/a" in stopped) == (0.125, False)
    shutil.rmtree(tmp_path / "mlflow-artifacts", ignore_errors=True)


def test_a_store_that_cannot_be_used_is_a_line_before_anything_is_trained(tmp_path):
    with pytest.raises(InputError, match="no file stores any more"):
        TrainingRun("t", tmp_path / "experts", "file:///tmp/x", None, print)
    assert not list(tmp_path.iterdir())
