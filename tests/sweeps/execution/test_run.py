"""Whole sweeps as a user runs them: real processes, a real Ray, a real MLflow file."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

TIMES = ("cost", "created", "run_id", "versions", "command")


def sweeps(*words: object, cwd: Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "sweeps", *map(str, words)],
        cwd=cwd, capture_output=True, text=True, timeout=240, check=False, **options,
    )  # fmt: skip


def comparison(folder: Path) -> dict:
    """The comparison without what differs from run to run: times, ids, the command line."""

    def strip(value):
        if isinstance(value, dict):
            return {name: strip(inner) for name, inner in value.items() if name not in TIMES}
        return [strip(inner) for inner in value] if isinstance(value, list) else value

    return strip(json.loads((folder / "comparison.json").read_text()))


@pytest.fixture(scope="module")
def undisturbed(tiny_pool, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    spec = tiny_pool.write(cwd / "tiny.yaml")
    done = sweeps("run", spec, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd


def test_a_sweep_ends_with_everything_the_contract_names(undisturbed):
    folder = undisturbed / "outputs" / "tiny"
    rows = {
        row["method"]: row for row in json.loads((folder / "comparison.json").read_text())["rows"]
    }
    assert next(iter(rows)) == "pretrained"
    assert list(rows)[-1] == "experts"
    assert {"simple_average", "ensemble", "task_arithmetic", "ties", "wise_ft"} <= set(rows)
    row = rows["task_arithmetic"]
    assert row["trials"] == 4
    assert set(row["test"]) >= {"acc/mean", "acc/lines", "acc/tones", "acc/blobs"}
    low, high = row["test_ci95"]["acc/mean"]
    assert low <= row["test"]["acc/mean"] <= high
    assert row["cost"]["trial_s"] > 0
    assert row["cost"]["peak_bytes"] > 10**7
    assert (folder / row["recipe"]).exists()
    assert "<html" in (folder / "report.html").read_text()


def test_mlflow_has_one_parent_and_one_child_a_trial(undisturbed):
    with sqlite3.connect(undisturbed / "outputs" / "mlflow.db") as db:
        keys = [key for (key,) in db.execute("select value from tags where key = 'trial_key'")]
        parents = db.execute("select count(*) from tags where key='role' and value='sweep'")
        assert parents.fetchone() == (1,)
        status = db.execute("select distinct status from runs").fetchall()
    ledger = {path.stem for path in (undisturbed / "outputs/tiny/ledger").glob("*.json")}
    assert sorted(keys) == sorted(ledger)
    assert status == [("FINISHED",)]


def test_a_second_run_needs_a_word(undisturbed):
    done = sweeps("run", "tiny.yaml", cwd=undisturbed)
    assert done.returncode == 2
    assert "--resume goes on with it, --fresh moves it aside" in done.stderr
    assert done.stderr.count("\n") == 1


def test_resuming_a_finished_sweep_runs_nothing_again(undisturbed):
    ledger = undisturbed / "outputs/tiny/ledger"
    before = {path.name: path.stat().st_mtime_ns for path in ledger.glob("*.json")}
    table = comparison(ledger.parent)
    done = sweeps("run", "tiny.yaml", "--resume", cwd=undisturbed)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.stat().st_mtime_ns for path in ledger.glob("*.json")} == before
    assert comparison(ledger.parent) == table


@pytest.mark.timeout(600)
def test_killed_and_resumed_equals_undisturbed(undisturbed, tiny_pool, tmp_path):
    """kill -9 of the driver in mid-sweep: no trial twice, no run twice, the same table."""
    spec = tiny_pool.write(tmp_path / "tiny.yaml")
    ledger = tmp_path / "outputs/tiny/ledger"
    driver = subprocess.Popen(
        [sys.executable, "-m", "sweeps", "run", str(spec)],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while len(list(ledger.glob("*.json"))) < 3:
        assert driver.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in ledger.glob("*.json")}
    assert not (tmp_path / "outputs/tiny/comparison.json").exists()
    done = sweeps("run", spec, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {path.name: path.stat().st_mtime_ns for path in ledger.glob("*.json")}
    assert {name: after[name] for name in kept} == kept
    assert comparison(tmp_path / "outputs/tiny") == comparison(undisturbed / "outputs/tiny")
    with sqlite3.connect(tmp_path / "outputs" / "mlflow.db") as db:
        keys = [key for (key,) in db.execute("select value from tags where key = 'trial_key'")]
    assert sorted(keys) == sorted(path.stem for path in ledger.glob("*.json"))


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tiny_pool, tmp_path):
    spec = tiny_pool.write(tmp_path / "tiny.yaml")
    ledger = tmp_path / "outputs/tiny/ledger"
    driver = subprocess.Popen(
        [sys.executable, "-m", "sweeps", "run", str(spec)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while len(list(ledger.glob("*.json"))) < 2:
        assert driver.poll() is None, "ended before it could be interrupted"
        time.sleep(0.01)
    driver.send_signal(signal.SIGINT)
    said = driver.communicate(timeout=60)[0]
    assert driver.returncode == 130, said
    assert f"sweeps run {spec} --resume" in said
    assert "Traceback" not in said
    assert len(list(ledger.glob("*.json"))) >= 2
    with sqlite3.connect(tmp_path / "outputs" / "mlflow.db") as db:
        tagged = "select status from runs join tags using (run_uuid) where key='role' and value="
        assert db.execute(f"{tagged}'sweep'").fetchall() == [("KILLED",)]
        assert len(db.execute(f"{tagged}'trial'").fetchall()) == len(list(ledger.glob("*.json")))
