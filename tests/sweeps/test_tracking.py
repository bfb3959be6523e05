"""MLflow: nothing twice, nothing lost."""

import shutil
from dataclasses import replace

import pytest

from fusion.errors import InputError
from sweeps import tracking
from sweeps.ledger import Entry

ENTRY = Entry(
    "k1", "ties", "static", {"density": 0.2, "weights": {"a": 0.1}}, "done", "select",
    metrics={"acc/mean": 0.5, "acc/x": 0.5}, n={"x": 2}, trial_s=1.5, peak_bytes=7,
    started="2026-01-02T03:04:05+00:00",
)  # fmt: skip


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    """A fresh store costs seconds of migrations: made once, copied for each test."""
    folder = tmp_path_factory.mktemp("store")
    tracking.connect(None, "other", folder)
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def store(migrated, tmp_path):
    shutil.copy(migrated, tmp_path / "mlflow.db")


def tracker(tmp_path, sweep_id="id1"):
    client, experiment = tracking.connect(None, None, tmp_path)
    return tracking.Tracker(client, experiment, "s", sweep_id, {"select": "val"})


def children(client, parent):
    return client.search_runs(
        [client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id],
        f"tags.mlflow.parentRunId = '{parent}'",
    )


def test_a_trial_is_one_run_however_often_it_is_sent(tmp_path):
    first = tracker(tmp_path)
    first.trial(ENTRY)
    first.flush([ENTRY])
    again = tracker(tmp_path)  # the driver was killed, and the sweep resumed
    assert again.parent == first.parent
    again.flush([ENTRY])
    (run,) = children(again.client, again.parent)
    assert run.data.tags["trial_key"] == "k1"
    assert run.data.metrics["acc/mean"] == 0.5
    assert run.data.metrics["peak_bytes"] == 7
    assert run.data.params == {"density": "0.2", "weights.a": "0.1"}
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 1500


def test_a_failed_trial_is_failed_and_its_rerun_completes_the_same_run(tmp_path):
    sent = tracker(tmp_path)
    sent.flush([replace(ENTRY, status="failed", metrics={}, error="boom")])
    (run,) = children(sent.client, sent.parent)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "boom"
    tracker(tmp_path).flush([ENTRY])
    (run,) = children(sent.client, sent.parent)
    assert run.info.status == "FINISHED"


def test_another_sweep_of_the_same_name_has_a_parent_of_its_own(tmp_path):
    assert tracker(tmp_path, "id1").parent != tracker(tmp_path, "id2").parent


def test_a_store_that_dies_loses_nothing(tmp_path, monkeypatch, caplog):
    sent = tracker(tmp_path)
    create = sent.client.create_run

    def dead(*_args, **_options):
        raise ConnectionError("server gone")

    monkeypatch.setattr(sent.client, "create_run", dead)
    sent.trial(ENTRY)
    sent.flush([])
    assert sent.fault == "server gone"
    assert caplog.text.count("--resume sends them") == 1
    monkeypatch.setattr(sent.client, "create_run", create)
    resumed = tracker(tmp_path)
    resumed.flush([ENTRY])
    assert len(children(resumed.client, resumed.parent)) == 1


def test_a_winner_is_one_logged_model_with_metrics_and_datasets(tmp_path):
    sent = tracker(tmp_path)
    sent.flush([ENTRY])
    recipe = tmp_path / "ties.yaml"
    recipe.write_text("method: ties\n")
    for _ in range(2):
        sent.winner("ties", "k1", {"acc/mean": 0.75, "acc/x": 0.75}, {"x": "digest"}, recipe)
    models = sent.client.search_logged_models(experiment_ids=[sent.experiment])
    assert [model.name for model in models] == ["ties"]
    run = sent.client.get_run(sent.run_id("k1"))
    assert run.data.metrics["test/acc/mean"] == 0.75
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["x"]
    assert [f.path for f in sent.client.list_artifacts(run.info.run_id, "recipe")] == [
        "recipe/ties.yaml"
    ]


def test_a_curve_is_metrics_at_their_steps(tmp_path):
    curve = [{"step": at, "loss": 5 - 0.01 * at, "loss/x": 1.0, "coding/min": 0.1,
              "coding/mean": 0.2, "coding/max": 0.3} for at in range(1, 301)]  # fmt: skip
    entry = replace(ENTRY, method="adamerging", params={"grouping": "task"}, steps=300, curve=curve)
    sent = tracker(tmp_path)
    sizes, log_batch = [], sent.client.log_batch

    def counted(run_id, metrics=(), params=(), tags=()):
        sizes.append(len(metrics) + len(params) + len(tags))
        return log_batch(run_id, metrics, params, tags)

    sent.client.log_batch = counted
    sent.flush([entry])
    sent.flush([entry])
    assert sent.fault is None
    assert len(sizes) == 2
    assert max(sizes) <= 1000
    run_id = sent.run_id("k1")
    found = sent.client.get_metric_history(run_id, "loss")
    assert [(m.step, m.value) for m in found] == [(p["step"], p["loss"]) for p in curve]
    assert len(sent.client.get_metric_history(run_id, "coding/max")) == 300
    run = sent.client.get_run(run_id)
    assert run.data.metrics["steps"] == 300
    assert run.data.params == {"grouping": "task", "steps": "1000"}
    assert run.data.metrics["acc/mean"] == 0.5


def test_a_winner_s_notes_and_what_it_learned_stay_with_it(tmp_path):
    sent = tracker(tmp_path)
    sent.flush([ENTRY])
    recipe, learned = tmp_path / "ties.yaml", tmp_path / "ties.safetensors"
    recipe.write_text("method: ties\n")
    learned.write_bytes(b"weights")
    sent.winner("ties", "k1", {"acc/mean": 0.75}, {}, recipe, notes=("a", "b"), files=[learned])
    run = sent.client.get_run(sent.run_id("k1"))
    assert run.data.tags["notes"] == "a; b"
    found = sent.client.list_artifacts(run.info.run_id, "recipe")
    assert sorted(file.path for file in found) == ["recipe/ties.safetensors", "recipe/ties.yaml"]


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("file:///tmp/mlruns", "no file stores any more"),
        ("./mlruns", "no file stores any more"),
        ("http://127.0.0.1:9", "cannot be used"),
        ("sqlite:////proc/nowhere/mlflow.db", "cannot be used"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line(tmp_path, uri, reason):
    with pytest.raises(InputError, match=reason) as caught:
        tracking.connect(uri, None, tmp_path)
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)
