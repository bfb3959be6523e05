"""MLflow on PostgreSQL, with passwords: killed in mid-sweep, and eight sweeps at once."""

import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from fusion.errors import InputError
from sweeps.results.ledger import Entry, Ledger
from sweeps.tracking import mlflow_store
from sweeps.tracking.logged_model import NOT_STORED
from sweeps.tracking.tracker import Tracker
from tests.cluster.tracking_server import PASSWORD, POSTGRES, USER, Postgres, Server
from tests.sweeps.tracking.folder_model import FolderModel

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not POSTGRES, reason="needs PostgreSQL (Debian: postgresql)"),
]

ROOT = Path(__file__).parents[2]
CURVE = [{"step": at, "loss": 5 - 0.01 * at, "coding/mean": 0.2} for at in range(1, 41)]


def entry(number: int, prefix: str = "k") -> Entry:
    return Entry(
        f"{prefix}{number:04d}", "adamerging", "adaptive",
        {"learning_rate": (number + 1) / 100_000},
        "done", "select", metrics={"acc/mean": number / 1000, "acc/x": 0.5}, n={"x": 2},
        trial_s=1.5, peak_bytes=7_000_000, busy_s=2.0, gpu_s=0.5, steps=40, curve=CURVE,
        started="2026-01-02T03:04:05+00:00",
    )  # fmt: skip


@pytest.fixture(scope="module")
def postgres():
    made = Postgres()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory, postgres):
    made = Server(tmp_path_factory.mktemp("server"), postgres)
    yield made
    made.kill()


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def complete(client, experiment, entries, sweeps=1):
    """Every run is there once, finished, with every metric once and every point of its curve."""
    parents = client.search_runs([experiment], "tags.role = 'sweep'")
    assert len(parents) == sweeps
    runs = client.search_runs([experiment], "tags.role = 'trial'", max_results=5000)
    keys = Counter(run.data.tags["trial_key"] for run in runs)
    assert keys == Counter(each.trial_key for each in entries)
    wanted = {each.trial_key: each for each in entries}
    for run in runs:
        each = wanted[run.data.tags["trial_key"]]
        assert run.info.status == "FINISHED"
        given = {"method": each.method, **each.params}
        assert run.data.params == {"steps": "1000", **{k: str(v) for k, v in given.items()}}
        assert {name: run.data.metrics[name] for name in each.metrics} == each.metrics
        assert run.data.metrics["system/gpu_seconds"] == 0.5
    for run in runs[:: max(1, len(runs) // 5)]:
        found = client.get_metric_history(run.info.run_id, "loss")
        assert [(m.step, m.value) for m in found] == [(p["step"], p["loss"]) for p in CURVE]
        assert len(client.get_metric_history(run.info.run_id, "acc/mean")) == 1


@pytest.mark.parametrize(
    ("user", "password", "said"),
    [
        (USER, "wrong", "wrong user or password (user 'admin')"),
        (None, None, "asks for a user and a password; set MLFLOW_TRACKING_USERNAME and"),
    ],
)
def test_a_wrong_or_absent_password_is_one_line(
    server, tiny_pool, tmp_path, monkeypatch, user, password, said
):
    for name, value in (("USERNAME", user), ("PASSWORD", password)):
        if value is None:
            monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
        else:
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    spec = tiny_pool.write(tmp_path / "tiny.yaml", mlflow={"tracking_uri": server.url})
    done = subprocess.run(
        [sys.executable, "-m", "sweeps", "run", str(spec)],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mlflow.tracking_uri: '{server.url}': {said}")
    assert not (tmp_path / "outputs" / "tiny" / "ledger").exists()


def test_a_reader_of_the_experiment_is_told_so_before_anything_starts(
    server, tmp_path, monkeypatch
):
    from mlflow.server.auth.client import AuthServiceClient

    mlflow_store.connect(server.url, "owned", tmp_path)
    AuthServiceClient(server.url).create_user("reader", "a-reader-password")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-reader-password")
    with pytest.raises(InputError, match="user 'reader' may not write here; EDIT permission"):
        mlflow_store.connect(server.url, "owned", tmp_path)


def test_server_and_database_killed_in_mid_sweep_lose_and_double_nothing(
    server, postgres, tmp_path, caplog
):
    client, experiment = mlflow_store.connect(server.url, "killed", tmp_path)
    tracker = Tracker(client, experiment, "s", "id1", {}, patience=120)
    entries, ledger, longest = [entry(number) for number in range(60)], Ledger(tmp_path), 0.0
    tmp_path.joinpath("recipe.yaml").write_text("method: adamerging\n")
    for at, each in enumerate(entries):
        ledger.add(each)
        began = time.monotonic()
        tracker.trial(each)
        longest = max(longest, time.monotonic() - began)
        if at == 10:
            server.kill()
        elif at == 25:
            server.start()
        elif at == 40:
            postgres.kill()
        elif at == 50:
            postgres.start()
        time.sleep(0.1)
    assert longest < 0.5  # the sweep never waits
    tracker.flush(ledger)
    server.kill()  # and once more, when the sweep's results are to be sent
    later = threading.Timer(1, server.start)
    later.start()
    recipe = tmp_path / "recipe.yaml"
    source = FolderModel(tmp_path / "model")
    tracker.winner("adamerging", "k0059", {"acc/mean": 0.7}, {"x": "digest"}, recipe, source=source)
    tracker.finish("FINISHED", {"test/acc/mean/adamerging": 0.7}, [recipe], note="**s**")
    later.join()
    assert tracker.fault is None
    assert "MLflow: back" in caplog.text
    complete(client, experiment, entries)
    (parent,) = client.search_runs([experiment], "tags.role = 'sweep'")
    assert parent.info.status == "FINISHED"
    assert client.get_experiment(experiment).tags["mlflow.note.content"].startswith("**s**\n")
    (model,) = client.search_logged_models([experiment])
    assert model.status.value == "READY"
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["recipe.yaml"]


def test_a_real_sweep_through_a_restart_of_the_server(server, tiny_pool, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_SWEEPS_MLFLOW_WAIT", "240")  # a small machine starts it in minutes
    spec = tiny_pool.write(
        tmp_path / "tiny.yaml", mlflow={"tracking_uri": server.url, "experiment": "restarted"}
    )
    ledger = tmp_path / "outputs/tiny/ledger"
    driver = subprocess.Popen(
        [sys.executable, "-m", "sweeps", "run", str(spec)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while len(list(ledger.glob("*.json"))) < 2:
        assert driver.poll() is None, driver.stdout.read()
        time.sleep(0.01)
    server.kill()
    server.start()
    said = driver.communicate(timeout=300)[0]
    assert driver.returncode == 0, said
    assert "MLflow lacks results" not in said
    client, experiment = mlflow_store.connect(server.url, "restarted", tmp_path)
    runs = client.search_runs([experiment], "tags.role = 'trial'")
    keys = sorted(run.data.tags["trial_key"] for run in runs)
    assert keys == sorted(path.stem for path in ledger.glob("*.json"))
    assert {run.info.status for run in runs} == {"FINISHED"}
    written = {each.trial_key: dict(each.metrics) for each in Ledger(ledger)}
    for run in runs:
        wanted = written[run.data.tags["trial_key"]]
        assert {name: run.data.metrics[name] for name in wanted} == wanted
    won = [run for run in runs if "winner" in run.data.tags]
    stored = {run.data.tags["winner"] for run in won if NOT_STORED not in run.data.tags}
    assert stored == {"simple_average", "task_arithmetic", "ties", "wise_ft"}
    models = client.search_logged_models([experiment])
    assert {model.name for model in models} == stored
    assert all(client.list_logged_model_artifacts(model.model_id) for model in models)


SENDS = """
import sys, dataclasses
from pathlib import Path
from sweeps.tracking import mlflow_store
from sweeps.tracking.tracker import Tracker
from tests.cluster.test_mlflow_server import entry
url, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
client, experiment = mlflow_store.connect(url, "eight", Path("."))
tracker = Tracker(client, experiment, name, f"id-{name}", {}, patience=60)
entries = [entry(number, name) for number in range(count)]
for each in entries:
    tracker.trial(each)
tracker.flush(entries)
tracker.finish("FINISHED", {"test/acc/mean/adamerging": 0.5}, [], note=f"**{name}**")
sys.exit(tracker.fault)
"""


def test_eight_sweeps_at_once_into_one_experiment_of_a_fresh_server(tmp_path, postgres):
    """All eight make the experiment at the same time: one does, and the others find it."""
    postgres.create("fresh")
    fresh = Server(tmp_path, postgres, "fresh")
    try:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", SENDS, fresh.url, f"s{number}", "25"],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            )
            for number in range(8)
        ]  # fmt: skip
        said = [process.communicate(timeout=600)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * 8, said
        client, experiment = mlflow_store.connect(fresh.url, "eight", tmp_path)
        wanted = [entry(n, f"s{number}") for number in range(8) for n in range(25)]
        complete(client, experiment, wanted, sweeps=8)
        page = client.get_experiment(experiment).tags["mlflow.note.content"]
        assert len(page.splitlines()) == 11  # five sweeps and a link, a line between two
    finally:
        fresh.kill()
