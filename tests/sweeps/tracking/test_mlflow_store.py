"""MLflow: nothing twice, nothing lost."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace

import pytest
from mlflow.exceptions import MlflowException

from fusion.errors import InputError
from sweeps.results.ledger import Entry
from sweeps.tracking import mlflow_store, retry_queue
from sweeps.tracking.run_fields import run_name, spec_params
from sweeps.tracking.tracker import Tracker
from tests.sweeps.tracking.folder_model import FolderModel

ENTRY = Entry(
    "k1", "ties", "static", {"density": 0.2, "weights": {"a": 0.1}}, "done", "select",
    metrics={"acc/mean": 0.5, "acc/x": 0.5}, n={"x": 2}, trial_s=1.5, peak_bytes=7,
    started="2026-01-02T03:04:05+00:00",
)  # fmt: skip


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    """A fresh store costs seconds of migrations: made once, copied for each test."""
    folder = tmp_path_factory.mktemp("store")
    mlflow_store.connect(None, "other", folder)
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def store(migrated, tmp_path):
    shutil.copy(migrated, tmp_path / "mlflow.db")


def tracker(tmp_path, sweep_id="id1", patience=0.2):
    client, experiment = mlflow_store.connect(None, None, tmp_path)
    return Tracker(client, experiment, "s", sweep_id, {"select": "val"}, patience=patience)


def children(client, parent):
    return client.search_runs(
        [client.get_experiment_by_name(mlflow_store.EXPERIMENT).experiment_id],
        f"tags.mlflow.parentRunId = '{parent}'",
    )


def test_a_trial_is_one_run_however_often_it_is_sent(tmp_path):
    first = tracker(tmp_path)
    first.trial(ENTRY)
    first.flush([ENTRY])
    again = tracker(tmp_path)  # the driver was killed, and the sweep resumed
    again.flush([ENTRY])
    assert again.parent == first.parent
    (run,) = children(again.client, again.parent)
    assert run.data.tags["trial_key"] == "k1"
    assert run.data.metrics["acc/mean"] == 0.5
    assert run.data.metrics["peak_bytes"] == 7
    assert run.data.metrics["val/acc/mean"] == 0.5
    assert run.data.params == {"method": "ties", "density": "0.2", "weights.a": "0.1"}
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
    assert "error" not in run.data.tags


def test_another_sweep_of_the_same_name_has_a_parent_of_its_own(tmp_path):
    trackers = [tracker(tmp_path, "id1"), tracker(tmp_path, "id2")]
    for each in trackers:
        each.flush([])
    assert all(each.parent for each in trackers)
    assert trackers[0].parent != trackers[1].parent


class Flaky:
    """A client whose every call fails first: before it is carried out, or its answer is lost."""

    def __init__(self, client, after):
        self.client, self.after, self.calls = client, after, set()

    def __getattr__(self, name):
        call = getattr(self.client, name)

        def flaky(*args, **options):
            first = name not in self.calls
            self.calls.add(name)
            if first and not self.after:
                raise ConnectionError("server gone")
            answer = call(*args, **options)
            if first:
                raise ConnectionError("answer lost")
            return answer

        return flaky


@pytest.mark.parametrize("after", [False, True])
def test_a_store_that_goes_away_at_every_call_loses_and_doubles_nothing(
    tmp_path, monkeypatch, after
):
    monkeypatch.setattr(retry_queue, "FIRST", 0.01)
    client, experiment = mlflow_store.connect(None, None, tmp_path)
    recipe = tmp_path / "ties.yaml"
    recipe.write_text("method: ties\n")
    sent = Tracker(Flaky(client, after), experiment, "s", "id1", {}, patience=60)
    sent.trial(ENTRY)
    sent.flush([ENTRY])
    sent.winner("ties", "k1", {"acc/mean": 0.75, "acc/x": 0.75}, {"x": "digest"}, recipe,
                source=FolderModel(tmp_path / "model"))  # fmt: skip
    sent.finish("FINISHED", {"test/acc/mean/ties": 0.75}, [recipe], note="### s")
    assert sent.fault is None
    (parent,) = client.search_runs([experiment], "tags.role = 'sweep'")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"test/acc/mean/ties": 0.75}
    assert parent.data.tags["mlflow.note.content"] == "### s"
    assert client.get_experiment(experiment).tags["mlflow.note.content"].startswith("### s\n")
    (run,) = children(client, sent.parent)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["acc/mean"] == 0.5
    for name in run.data.metrics:
        assert len(client.get_metric_history(run.info.run_id, name)) == 1, name
    (model,) = client.search_logged_models([experiment])
    assert (model.name, model.status.value) == ("ties", "READY")
    assert [o.model_id for o in run.outputs.model_outputs] == [model.model_id]


def test_a_request_carried_out_after_it_was_given_up_leaves_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr(retry_queue, "FIRST", 0.01)
    sent = tracker(tmp_path, patience=5)
    sent.flush([])
    create, late = sent.client.create_run, []

    def slow(*args, **options):
        if not late:
            late.append((args, options))
            raise ConnectionError("timed out")
        return create(*args, **options)

    monkeypatch.setattr(sent.client, "create_run", slow)
    sent.trial(ENTRY)
    sent.sender.drain()
    create(*late[0][0], **late[0][1])  # the server had been slow, not dead
    assert len(children(sent.client, sent.parent)) == 2
    sent.flush([ENTRY])
    (run,) = children(sent.client, sent.parent)
    assert (run.info.run_id, run.info.status) == (sent.run_id("k1"), "FINISHED")


def test_a_store_that_stays_away_is_given_up_and_resumed(tmp_path, monkeypatch, caplog):
    sent = tracker(tmp_path)
    sent.flush([])

    def dead(*_args, **_options):
        raise ConnectionError("server gone")

    for name in ("create_run", "get_experiment", "get_run", "log_batch"):
        monkeypatch.setattr(sent.client, name, dead)
    sent.trial(ENTRY)
    sent.flush([ENTRY])
    sent.finish("FINISHED", {}, [])
    assert sent.fault == "server gone"
    assert caplog.text.count("--resume sends them") == 1
    resumed = tracker(tmp_path)
    resumed.flush([ENTRY])
    assert len(children(resumed.client, resumed.parent)) == 1


def test_how_long_to_wait_is_checked_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_SWEEPS_MLFLOW_WAIT", "soon")
    with pytest.raises(InputError, match="'soon': a number of seconds allowed"):
        mlflow_store.connect(None, None, tmp_path)
    monkeypatch.setenv("FUSION_SWEEPS_MLFLOW_WAIT", "2.5")
    assert tracker(tmp_path, patience=None).sender.patience == 2.5


def test_cost_and_vitals_are_system_metrics(tmp_path):
    client, experiment = mlflow_store.connect(None, None, tmp_path)
    sent = Tracker(client, experiment, "s", "id1", {}, watch=tmp_path)
    sent.flush([replace(ENTRY, busy_s=3.5, gpu_s=1.75, peak_bytes=2_000_000)])
    sent.finish("FINISHED", {}, [])
    metrics = client.get_run(sent.run_id("k1")).data.metrics
    assert metrics["system/gpu_seconds"] == 1.75
    assert metrics["system/busy_seconds"] == 3.5
    assert metrics["system/peak_memory_megabytes"] == 2
    driver = client.get_run(sent.parent).data.metrics
    assert driver["trials"] == 1
    assert 0 < driver["system/driver_memory_megabytes"] < 10**5
    assert 0 <= driver["system/system_memory_usage_percentage"] <= 100


def test_the_winner_of_an_extended_sweep_replaces_the_old_one(tmp_path):
    sent, other = tracker(tmp_path), replace(ENTRY, trial_key="k2", params={"density": 0.5})
    sent.flush([ENTRY, other])
    for key in ("k1", "k2"):
        sent.winner(
            "ties", key, {"acc/mean": 0.75}, {}, None, source=FolderModel(tmp_path / "model")
        )
    won = [
        run.info.run_id for run in children(sent.client, sent.parent) if "winner" in run.data.tags
    ]
    assert won == [sent.run_id("k2")]
    models = sent.client.search_logged_models([sent.experiment])
    assert [model.source_run_id for model in models] == won


def test_the_experiment_describes_its_newest_sweeps(tmp_path):
    for number in range(7):
        each = tracker(tmp_path, f"id{number}")
        each.finish("FINISHED", {}, [], note=f"### sweep {number}")
    page = each.client.get_experiment(each.experiment).tags["mlflow.note.content"]
    assert page.splitlines()[:9:2] == [f"### sweep {number}" for number in (6, 5, 4, 3, 2)]
    assert page.endswith(f"(#/experiments/{each.experiment}/runs?viewStateShareKey=winners)")


def test_a_winner_is_one_logged_model_with_metrics_and_datasets(tmp_path):
    sent = tracker(tmp_path)
    sent.flush([ENTRY])
    recipe = tmp_path / "ties.yaml"
    recipe.write_text("method: ties\n")
    for _ in range(2):
        sent.winner("ties", "k1", {"acc/mean": 0.75, "acc/x": 0.75}, {"x": "digest"}, recipe,
                    source=FolderModel(tmp_path / "model"))  # fmt: skip
    models = sent.client.search_logged_models(experiment_ids=[sent.experiment])
    assert [model.name for model in models] == ["ties"]
    run = sent.client.get_run(sent.run_id("k1"))
    assert run.data.metrics["test/acc/mean"] == 0.75
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["x"]
    assert [f.path for f in sent.client.list_artifacts(run.info.run_id, "recipe")] == [
        "recipe/ties.yaml"
    ]


def test_the_parent_has_the_fields_of_the_sweep_file_and_keeps_what_it_began_with(tmp_path):
    client, experiment = mlflow_store.connect(None, None, tmp_path)
    methods = {f"method_{at}": {"scale": {"grid": [0.1, at]}} for at in range(120)}
    spec = {"name": "s", "methods": methods, "seed": 0, "metric": None, "mlflow": {"x": 1}}
    for seed in (0, 1):  # extended by hand
        params = spec_params({**spec, "seed": seed})
        sent = Tracker(client, experiment, "s", "id1", {}, params=params, patience=1)
        sent.flush([])
        assert sent.fault is None
    found = client.get_run(sent.parent).data.params
    assert found["methods.method_7.scale.grid"] == "[0.1, 7]"
    assert (len(found), found["seed"]) == (122, "0")
    assert sent.page == f"#/experiments/{experiment}/runs/{sent.parent}"


def test_names_of_runs_are_short():
    weights = {f"task_{at}": 0.123456789 for at in range(20)}
    assert run_name(ENTRY) == "ties density=0.2 weights.a=0.1"
    name = run_name(replace(ENTRY, method="weighted_average", params={"weights": weights}))
    assert name == "weighted_average weights.task_0=0.1235 weights.task_1=0.1235 +18"
    assert run_name(replace(ENTRY, params={"x" * 70: 1})) == "ties +1"


def test_values_of_a_learner_are_no_scores_of_a_split(tmp_path):
    sent = tracker(tmp_path)
    sent.flush([replace(ENTRY, metrics={"acc/mean": 0.5, "chosen/scale": 0.3})])
    found = sent.client.get_run(sent.run_id("k1")).data.metrics
    assert (found["val/acc/mean"], found["chosen/scale"]) == (0.5, 0.3)
    assert "val/chosen/scale" not in found


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
    assert run.data.params == {"method": "adamerging", "grouping": "task", "steps": "1000"}
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


def test_a_store_that_reads_and_takes_no_write_is_said_at_once_and_holds_nobody(tmp_path):
    """20 trials on a store in which nothing can be inserted; later it can, and has them all."""
    said, path = [], tmp_path / "mlflow.db"
    client, experiment = mlflow_store.connect(None, None, tmp_path)
    refuse = "select raise(abort, 'database or disk is full'); end"
    changed(f"create trigger full before insert on runs begin {refuse}")(path)
    entries = [replace(ENTRY, trial_key=f"k{at}") for at in range(20)]
    sent = Tracker(client, experiment, "s", "id1", {}, patience=1, say=said.append)
    sent.trial(entries[0])
    began = time.monotonic()
    while not said:
        assert time.monotonic() - began < 5
        time.sleep(0.01)
    assert "database or disk is full" in said[0]
    began = time.monotonic()
    sent.flush(entries)
    sent.finish("FINISHED", {}, [])
    assert time.monotonic() - began < 5
    assert "database or disk is full" in sent.fault
    assert len(said) <= 3
    changed("drop trigger full")(path)
    resumed = tracker(tmp_path)
    resumed.flush(entries)
    assert resumed.fault is None
    assert len(children(resumed.client, resumed.parent)) == 20


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(*statements):
    def damage(path):
        with closing(sqlite3.connect(path)) as db:
            for statement in statements:
                db.execute(statement)
            db.commit()

    return damage


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "bytes are missing at its end"),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), "file is not a database"),
        (lambda path: path.write_bytes(b"not a database, long enough for a header" * 10), "not a"),
        (changed("drop table metrics"), "it has no table metrics"),
        (changed("drop table logged_models"), "it has no table logged_models"),
        (changed("drop table alembic_version"), "it has tables, and no revision of them"),
        (changed("delete from alembic_version"), "it has tables, and no revision of them"),
        # A migration that was cut off: its changes are there, its revision is not.
        (
            changed(
                "drop table logged_models",
                "update alembic_version set version_num = '451aebb31d03'",
            ),
            "already exists|duplicate column|no such",
        ),
    ],
)
def test_a_store_that_is_no_whole_one_is_a_line_that_says_what_to_do(tmp_path, damage, reason):
    path = tmp_path / "mlflow.db"
    damage(path)
    with pytest.raises(InputError, match=reason) as caught:
        mlflow_store.connect(None, None, tmp_path)
    line = str(caught.value)
    assert "\n" not in line
    assert f"move it aside (mv {path} {path}.broken), and --resume sends everything" in line


KILLED = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("pragma cache_size = 1")  # so that pages are written before the end of the transaction
db.execute("begin")
db.execute("delete from experiment_tags")
for number in range(2000):
    row = (number + 100, str(number))
    db.execute("insert into experiments values (?, ?, 'x', 'active', 0, 0, 'w')", row)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_killed_in_a_transaction_leaves_a_store_that_is_whole(tmp_path):
    path = tmp_path / "mlflow.db"
    first = tracker(tmp_path)
    first.trial(ENTRY)
    first.flush([ENTRY])
    done = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "mlflow.db-journal").stat().st_size > 0
    resumed = tracker(tmp_path)
    assert len(children(resumed.client, first.parent)) == 1
    assert resumed.client.get_experiment_by_name("0") is None
    assert not (tmp_path / "mlflow.db-journal").exists()


def test_a_store_of_another_mlflow_is_not_touched(tmp_path):
    path = tmp_path / "mlflow.db"
    changed("update alembic_version set version_num = 'of later'")(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="of later") as caught:
        mlflow_store.connect(None, None, tmp_path)
    assert "half made" not in str(caught.value)
    assert path.read_bytes() == before


def test_a_store_whose_making_fails_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").unlink()

    def half(uri):
        (tmp_path / uri.rpartition("/")[2]).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow_store, "initialise", half)
    with pytest.raises(KeyboardInterrupt):
        mlflow_store.connect(None, None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mlflow.db.lock"]


CONNECT = """
import sys
from pathlib import Path
from sweeps.tracking import mlflow_store
for folder in sys.argv[1:]:
    client, experiment = mlflow_store.connect(None, "shared", Path(folder))
    client.set_terminated(client.create_run(experiment).info.run_id)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_processes_at_once_make_one_store_and_one_experiment(tmp_path):
    """Round after round on folders that are not there yet."""
    folders = [tmp_path / f"round-{at}" for at in range(4)]
    words = [sys.executable, "-c", CONNECT, *map(str, folders)]
    drivers = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for driver in drivers:
        said = driver.communicate(timeout=500)[1]
        assert driver.returncode == 0, said
    for folder in folders:
        client, experiment = mlflow_store.connect(None, "shared", folder)
        assert len(client.search_runs([experiment])) == 4
        assert len(client.search_experiments(filter_string="name = 'shared'")) == 1
        assert not list(folder.glob(".*.part*"))


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
        mlflow_store.connect(uri, None, tmp_path)
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        '(psycopg.errors.UniqueViolation) duplicate key value violates "experiment_tag_pk"',
        "(sqlite3.IntegrityError) UNIQUE constraint failed: experiment_tags.key",
        "(pymysql.err.IntegrityError) (1062, \"Duplicate entry 'a-1' for key 'PRIMARY'\")",
    ],
)
def test_a_tag_that_another_sweep_makes_at_the_same_time_is_set(said):
    client = Racing(said)
    mlflow_store.tag_experiment(client, "1", "key", "value")
    assert client.tags == {"key": "value"}


def test_a_tag_that_is_refused_stays_refused():
    client = Racing("value is too long")
    with pytest.raises(MlflowException, match="too long"):
        mlflow_store.tag_experiment(client, "1", "key", "value")
    assert client.calls == 1


class Racing:
    """A client whose first tag the database refuses."""

    def __init__(self, said):
        self.said, self.calls, self.tags = said, 0, {}

    def set_experiment_tag(self, experiment, key, value):
        self.calls += 1
        if self.calls == 1:
            raise MlflowException(self.said)
        self.tags[key] = value
